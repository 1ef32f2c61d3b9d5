"""Full fine-tuning of the language model: all its decoder layers and last norm, and by default its embeddings and head.

A reference point. The learning rate is that of LLaVA-1.5's own second stage (2e-5, its finetune.sh). The vision tower
stays as it is, the connector follows the run's setting. Kept as a delta that is as large as the language model in fp32.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.errors import UserError
from peftbench.models.arch import block_part, partition, places

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "Full fine-tuning"
TRAINS = True
IN_PLACE = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-5
    embeddings: bool = True
    """Whether the token embeddings and the output head are trained too; at location "both" alone."""


def _part(location: str) -> str:
    """The part of the decoder layers that is trained; empty for all there is."""
    attention, mlp = places(location, DEFAULT_LOCATION, LOCATIONS, "full_lm")
    return "" if attention and mlp else "attention" if attention else "mlp"


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """The model itself, with its language model trainable; ``UserError`` where nothing is."""
    part, components = _part(location), partition(model, names)
    wanted = {"language", "embeddings"} if config.embeddings and not part else {"language"}
    layer = re.compile(rf"(?:{names.layers})\.")
    chosen = 0
    for path, parameter in model.named_parameters():
        learns = components[path] in wanted
        if learns and part:
            start = layer.match(path)
            inside = path[start.end() :] if start else ""
            learns = bool(start) and part == block_part(
                inside, names.attention, names.mlp, names.attention_module
            )
        parameter.requires_grad_(learns)
        chosen += learns
    if not chosen:
        raise UserError(f"method full_lm: the decoder layers have no {part}: nothing would be trained")
    return model


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Parameters of the language model, or of a part of its decoder layers."""
    part = _part(location)
    if not part:
        own = dims.outside + (dims.embeddings if config.embeddings else 0)
        return own + sum(sum(block.values()) for block in dims.blocks)
    return sum(
        size
        for block in dims.blocks
        for path, size in block.items()
        if block_part(path, dims.attention, dims.mlp, dims.attention_module) == part
    )


def trained_layers(dims: Dims, config: Config, location: str) -> dict[int, list[str]]:
    """Decoder layer -> its linear layers that are trained, for estimates of time and memory."""
    leaves = {"": [*dims.attention, *dims.mlp], "attention": list(dims.attention), "mlp": list(dims.mlp)}
    return dict.fromkeys(range(dims.layers), leaves[_part(location)])
