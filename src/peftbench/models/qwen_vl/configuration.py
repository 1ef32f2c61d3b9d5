"""Configuration of Qwen-VL-Chat, under the names of its ``config.json``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

POOL_HEAD_SIZE = 128
"""Width of a head of the resampler: the checkpoint's configuration has no number of heads for it."""


@dataclasses.dataclass(frozen=True)
class VisionSettings:
    """The ``visual`` block. ``image_start_id`` is the id of ``<img>``; ``</img>`` and ``<imgpad>`` follow it."""

    image_size: int = 448
    patch_size: int = 14
    width: int = 1664
    layers: int = 48
    heads: int = 16
    mlp_ratio: float = 4.9231
    output_dim: int = 4096
    image_start_id: int = 151857
    n_queries: int = 256
    """Image tokens per image; published configurations leave it out."""

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP: 8192 in the published model."""
        return int(self.width * self.mlp_ratio)

    @property
    def image_token_id(self) -> int:
        """Id of ``<imgpad>``, whose embeddings the image replaces."""
        return self.image_start_id + 2


@strict
class QwenVLConfig(PreTrainedConfig):
    """Sizes of the published model are the defaults. ``ValueError`` for what this port does not compute."""

    model_type = "qwen"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "head_dim": "kv_channels",
        "num_key_value_heads": "num_attention_heads",
        "rms_norm_eps": "layer_norm_epsilon",
    }

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    """Twice the width of the MLP's hidden layer."""
    layer_norm_epsilon: float = 1e-6
    rotary_emb_base: float | int = 10000
    rotary_pct: float | int = 1.0
    seq_length: int = 2048
    """Length of pre-training; beyond it, and only in evaluation, the two switches below take effect."""
    max_position_embeddings: int = 8192
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    emb_dropout_prob: float | int = 0.0
    attn_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    visual: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # As a plain mapping: a configuration object would ask for a model class of its own.
        self.visual = dataclasses.asdict(_vision_settings(self.visual or {}))
        super().__post_init__(**kwargs)
        self._check_sizes()

    @property
    def vision(self) -> VisionSettings:
        """The ``visual`` block, typed."""
        return _vision_settings(self.visual or {})

    def _check_sizes(self) -> None:
        vision = self.vision
        problems = {
            "no_bias: only true is known": not self.no_bias,
            "rotary_pct: only 1.0 is known": self.rotary_pct != 1.0,
            "hidden_size must be num_attention_heads * kv_channels": self.hidden_size
            != self.num_attention_heads * self.kv_channels,
            "kv_channels must be even and above 2": self.kv_channels % 2 or self.kv_channels <= 2,
            "intermediate_size must be even": self.intermediate_size % 2,
            "visual.output_dim must be hidden_size": vision.output_dim != self.hidden_size,
            f"visual.output_dim must be a multiple of {POOL_HEAD_SIZE}": vision.output_dim % POOL_HEAD_SIZE,
            "visual.width must be a multiple of visual.heads": vision.width % vision.heads,
            "visual.image_size must be a multiple of visual.patch_size": vision.image_size
            % vision.patch_size,
            "visual.n_queries must be a square": math.isqrt(vision.n_queries) ** 2 != vision.n_queries,
            "visual.image_start_id + 2 must be below vocab_size": vision.image_token_id >= self.vocab_size,
        }
        found = [problem for problem, holds in problems.items() if holds]
        if found:
            raise ValueError(f"Qwen-VL configuration: {'; '.join(found)}")


def _vision_settings(block: dict[str, Any]) -> VisionSettings:
    known = {field.name for field in dataclasses.fields(VisionSettings)}
    odd = sorted(block.keys() - known)
    if odd:
        raise ValueError(f"Qwen-VL configuration: visual.{odd[0]} is not known; there is {', '.join(known)}")
    return VisionSettings(**block)
