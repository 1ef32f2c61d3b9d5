"""Which weights of the base model a selective method trains: parts of the last decoder layers.

The line of work around SPIDER trains the last decoder blocks whole, norms too, and the connector (its code:
``tune_decoder_layer``, ``tune_mm_mlp_adapter``). Location ``both``, the default, means what ``modules`` says; ``attn``
and ``mlp`` mean that part of the layers alone. The connector follows the run's own setting ``connector``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct, field

from peftbench.errors import UserError
from peftbench.models.arch import block_part, decoder_layers, places

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"
Part = Literal["attention", "mlp", "norm"]


class Selection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all selective methods are set by; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4
    blocks: Annotated[int, Meta(ge=1)] = 2
    """Decoder layers that are trained, counted from the last one."""
    modules: Annotated[list[Part], Meta(min_length=1)] = field(
        default_factory=lambda: ["attention", "mlp", "norm"]
    )
    """Parts of those layers that are trained; "norm" is all that is neither attention nor MLP."""


def method_name(config: Any) -> str:
    """Name of the method whose settings these are, for messages."""
    return type(config).__module__.rpartition(".")[2]


def parts(config: Selection, location: str) -> list[str]:
    """The parts of a decoder layer that are trained."""
    attention, mlp = places(location, DEFAULT_LOCATION, LOCATIONS, method_name(config))
    return list(config.modules) if attention and mlp else ["attention"] if attention else ["mlp"]


def last_blocks(total: int, config: Selection) -> range:
    """Numbers of the decoder layers that are trained; ``UserError`` where there are fewer than asked for."""
    if config.blocks > total:
        raise UserError(
            f"method {method_name(config)}: blocks: {config.blocks}: the model has {total} decoder layers"
        )
    return range(total - config.blocks, total)


def apply(model: Any, names: ModelNames, config: Any, location: str) -> Any:
    """The model itself, with the selected parameters trainable; ``UserError`` where none is selected."""
    wanted = parts(config, location)
    layers = list(decoder_layers(model, names).values())
    chosen = 0
    for number in last_blocks(len(layers), config):
        for path, parameter in layers[number].named_parameters():
            if block_part(path, names.attention, names.mlp, names.attention_module) in wanted:
                parameter.requires_grad_(True)
                chosen += 1
    if not chosen:
        raise UserError(
            f"method {method_name(config)}: modules: the decoder layers have no {' or '.join(wanted)}: "
            "nothing would be trained"
        )
    return model


def trainable_count(dims: Dims, config: Any, location: str) -> int:
    """Parameters of the selected parts of the last decoder layers."""
    wanted = parts(config, location)
    return sum(
        size
        for number in last_blocks(dims.layers, config)
        for path, size in dims.blocks[number].items()
        if block_part(path, dims.attention, dims.mlp, dims.attention_module) in wanted
    )


def trained_layers(dims: Dims, config: Any, location: str) -> dict[int, list[str]]:
    """Decoder layer -> its linear layers that are trained, for estimates of time and memory."""
    wanted = parts(config, location)
    leaves = [
        leaf
        for part, chosen in (("attention", dims.attention), ("mlp", dims.mlp))
        for leaf in chosen
        if part in wanted
    ]
    return dict.fromkeys(last_blocks(dims.layers, config), leaves)
