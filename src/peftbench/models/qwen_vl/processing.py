"""Processor of Qwen-VL-Chat: pixels by CLIP's processor, text by the fast tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin

IMAGE_TOKEN = "<imgpad>"
"""Placeholder of an image. Prompts have it once between ``<img>`` and ``</img>``."""


class QwenVLProcessor(ProcessorMixin):
    """An image of any size becomes ``num_image_tokens`` placeholders.

    The original puts the bytes of the picture's path before the padding; the model overwrites them all, so
    padding alone is the same to it.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        num_image_tokens: int = 256,
        image_token: str = IMAGE_TOKEN,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What the placeholder of an image becomes in the text."""
        return self.image_token * self.num_image_tokens


def clip_image_processor(image_size: int) -> Any:
    """CLIP's preprocessing without its crop: RGB, bicubic to a square (the aspect ratio is lost), CLIP's mean.

    The Pillow backend; torchvision's resampling differs.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size}, do_center_crop=False, do_convert_rgb=True
    )
