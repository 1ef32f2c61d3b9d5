"""LoRA (Hu et al. 2021): ``y = W x + (alpha / rank) B A drop(x)`` on the language model's linear layers.

Defaults are those of the paper's scripts: rank 128, alpha 256, dropout 0.05, on query, key, value, output,
gate, up and down; A by Kaiming's uniform draw, B zero, so that step 0 is the base model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from peftbench.models.arch import places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "LoRA"
TRAINS = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4
    rank: Annotated[int, Meta(ge=1)] = 128
    alpha: Annotated[float, Meta(gt=0)] | None = None
    """Scale times rank; None: twice the rank, the ratio of the paper's script."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    rank_stabilised: bool = False
    """Scale by ``alpha / sqrt(rank)`` (rsLoRA)."""


def _leaves(names: ModelNames, location: str) -> list[str]:
    attention, mlp = places(location, DEFAULT_LOCATION, LOCATIONS, "lora")
    return (names.attention if attention else []) + (names.mlp if mlp else [])


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the LoRA matrices are trainable afterwards."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rank_stabilised,
        bias="none",
        target_modules=target_regex(names, _leaves(names, location)),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """``layers * rank * sum(in + out)`` over the targeted linear layers."""
    attention, mlp = places(location, DEFAULT_LOCATION, LOCATIONS, "lora")
    leaves = (dims.attention if attention else []) + (dims.mlp if mlp else [])
    return dims.layers * config.rank * sum(sum(dims.linear[leaf]) for leaf in leaves)
