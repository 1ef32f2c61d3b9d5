"""LoHa (Hyeon-Woo et al. 2021, FedPara, arXiv 2108.06098): the element-wise product of two low-rank matrices.

Rank ``r`` each, so the update can have rank ``r`` squared. Rank and alpha 8 are peft's; the learning rate is that of
peft's comparison of methods (the paper trains convolutions and recurrent networks from scratch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "LoHa"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("loha", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    rank: _peft.Rank = 8
    alpha: _peft.Scale | None = None
    """Scale times rank; None: the rank."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the matrices are trainable afterwards."""
    from peft import LoHaConfig

    settings = LoHaConfig(
        r=config.rank,
        alpha=config.rank if config.alpha is None else config.alpha,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``2 * rank * (in + out)``."""
    sizes = AT.sizes(dims, config, location)
    return dims.layers * 2 * config.rank * sum(i + o for i, o in sizes)
