"""LoRA (Hu et al. 2021): ``y = W x + (alpha / rank) B A drop(x)`` on the language model's linear layers.

Defaults are those of the paper's scripts: rank 128, alpha 256, dropout 0.05, on query, key, value, output,
gate, up and down; A by Kaiming's uniform draw, B zero, so that step 0 is the base model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from peftbench.models.arch import check_leaves, places, target_regex

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "LoRA"
TRAINS = True
MERGEABLE = True
LOCATIONS: tuple[str, ...] = ("attn", "mlp", "both")
DEFAULT_LOCATION = "both"
LEAF_SETTINGS = ("targets",)
"""Settings that name the layers which location "default" means; where one is given, it stays "default"."""


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-4
    rank: Annotated[int, Meta(ge=1)] = 128
    alpha: Annotated[float, Meta(gt=0)] | None = None
    """Scale times rank; None: twice the rank, the ratio of the paper's script."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    rank_stabilised: bool = False
    """Scale by ``alpha / sqrt(rank)`` (rsLoRA)."""
    targets: Annotated[list[str], Meta(min_length=1)] | None = None
    """Linear layers inside a decoder layer that location "default" means instead."""


def _leaves(attention: list[str], mlp: list[str], config: Config, location: str) -> list[str]:
    if location == "default" and config.targets is not None:
        return config.targets
    wanted = places(location, DEFAULT_LOCATION, LOCATIONS, "lora")
    return (attention if wanted[0] else []) + (mlp if wanted[1] else [])


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the LoRA matrices are trainable afterwards."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rank_stabilised,
        bias="none",
        target_modules=target_regex(names, _leaves(names.attention, names.mlp, config, location)),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """``layers * rank * sum(in + out)`` over the targeted linear layers."""
    leaves = _leaves(dims.attention, dims.mlp, config, location)
    check_leaves(dims, leaves, "method lora: targets")
    return dims.layers * config.rank * sum(sum(dims.linear[leaf]) for leaf in leaves)
