"""A model without weights: its real classes and sizes on torch's meta device, from its ``config.json`` alone.

Parameters have shapes and no values, so that a model of any size is built in a second, methods attach to it as
to the real one, and its matrix products can be counted (``peftbench.efficiency.flops``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def read_architecture(path: Path) -> dict[str, Any]:
    """The content of a ``config.json``; ``UserError`` where it cannot be read or is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"architecture {path}: {error}") from None
    if not isinstance(content, dict) or not content.get("model_type"):
        raise UserError(f"architecture {path}: not the content of a config.json: it has no model_type")
    return content


def read_config(architecture: Mapping[str, Any], code: str = "") -> PreTrainedConfig:
    """The configuration object of the content of a ``config.json``.

    ``code`` names the module of ``peftbench.models`` that registers an architecture which transformers does
    not have. Raises ``UserError`` where the type is missing or unknown, or a value does not fit.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if code:
        importlib.import_module(f"peftbench.models.{code}")
    settings = dict(architecture)
    kind = settings.pop("model_type", None)
    if not kind:
        raise UserError("architecture: model_type is missing: give the content of the model's config.json")
    for name in ("architectures", "auto_map", "transformers_version", "torch_dtype", "dtype"):
        settings.pop(name, None)  # about the file or the weights, not about the sizes
    try:
        config: PreTrainedConfig = AutoConfig.for_model(kind, **settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"architecture {kind}: {' '.join(str(error).split())[:300]}") from None
    return config


def instantiate(
    architecture: Mapping[str, Any], code: str = "", vocabulary: int | None = None
) -> PreTrainedModel:
    """The model on the meta device in fp32, all parameters frozen, evaluation mode.

    ``vocabulary`` replaces the number of rows of the embeddings and the head (checkpoints of one model differ
    in it: rows for added tokens). Raises ``UserError`` where the architecture is unknown or does not fit.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    config = read_config(architecture, code)
    if vocabulary is not None:
        text = config.get_text_config()
        text.vocab_size = vocabulary
        padding = getattr(text, "pad_token_id", None)
        if padding is not None and padding >= vocabulary:
            text.pad_token_id = None
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa"
            )
    except (ValueError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"architecture {config.model_type}: cannot be built: {line}") from None
    model.requires_grad_(False)
    return model.eval()


def image_shape(config: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Shape of ``pixel_values`` for one image, ``(1, channels, height, width)``.

    Read from the vision part of the configuration. Raises ``UserError`` for models that do not have one fixed
    image size.
    """
    for value in config.to_dict().values():
        size = value.get("image_size") if isinstance(value, dict) else None
        if isinstance(size, int):
            return 1, int(value.get("num_channels") or 3), size, size
    raise UserError(
        f"architecture {config.model_type}: it has no fixed image size: say the shape of its pixel_values"
    )
