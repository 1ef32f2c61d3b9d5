"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454): one pair of frozen random matrices for all layers, scaled by vectors.

``W' = W + diag(b) B diag(d) A`` with learnt ``d`` (one per rank) and ``b`` (one per output). Defaults are the paper's
for instruction tuning of Llama: rank 256, learning rate 4e-3, ``d`` starts at 0.1 and ``b`` at zero. The random pair
comes from a seed of its own and is saved with the vectors, so that it never has to be drawn again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "VeRA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("vera", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 4e-3
    rank: _peft.Rank = 256
    dropout: _peft.Dropout = 0.0
    initial: _peft.Scale = 0.1
    """First value of ``d``."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the scaling vectors are trainable afterwards."""
    from peft import VeraConfig

    settings = VeraConfig(
        r=config.rank,
        vera_dropout=config.dropout,
        d_initial=config.initial,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank + out``."""
    sizes = AT.sizes(dims, config, location)
    return dims.layers * sum(config.rank + o for _, o in sizes)
