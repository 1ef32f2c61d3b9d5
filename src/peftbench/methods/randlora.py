"""RandLoRA (Albert et al. 2025, arXiv 2502.00987): a full-rank update out of frozen random low-rank bases.

As many bases of rank ``r`` as make the rank full, each weighted by learnt diagonal matrices: a *smaller* ``rank`` has
more parameters. Defaults are peft's, which are the paper's for language models (rank 32, alpha 20 times the rank); the
learning rate is that of peft's comparison of methods. The bases come from a seed of their own and are saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "RandLoRA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("randlora", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    rank: _peft.Rank = 32
    alpha: Annotated[int, Meta(ge=1)] | None = None
    """Scale times rank; None: 20 times the rank."""
    dropout: _peft.Dropout = 0.0


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the diagonal matrices are trainable afterwards."""
    from peft import RandLoraConfig

    settings = RandLoraConfig(
        r=config.rank,
        randlora_alpha=20 * config.rank if config.alpha is None else config.alpha,
        randlora_dropout=config.dropout,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def snapshot(model: Any, config: Any) -> dict[str, Any]:
    """What is saved: peft's state with the frozen bases, which all layers share, once."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    bases = ("randlora_A", "randlora_B")
    return {name: value for name, value in state.items() if not name.endswith(bases) or name.count(".") == 1}


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer with ``n = ceil(min(in, out) / rank)`` bases: ``n * (rank + min(in, out))``."""
    sizes = AT.sizes(dims, config, location)
    narrow = [min(size) for size in sizes]
    return dims.layers * sum(-(-n // config.rank) * (config.rank + n) for n in narrow)
