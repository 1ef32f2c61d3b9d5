"""OLoRA (Buyukakyuz 2024, arXiv 2406.01775): LoRA that starts from the QR decomposition of the weights.

B starts as the first columns of Q, which are orthonormal, A as the first rows of R; what is left of the weights is
frozen, and step 0 is the base model. Defaults are those of the author's script in peft's examples: rank 32, alpha 16,
dropout 0.05, learning rate 3e-4. What is saved is a LoRA of twice the rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftbench.methods import _peft, _residual
from peftbench.methods._peft import LinearConfig, LinearLayers
from peftbench.methods._residual import load, snapshot

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

__all__ = ["load", "snapshot"]

TITLE = "OLoRA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("olora", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 3e-4
    rank: _peft.Rank = 32
    alpha: _peft.Scale = 16.0
    """Scale times rank."""
    dropout: _peft.Dropout = 0.05


def apply(model: Any, names: ModelNames, config: Config, location: str, fresh: bool = True) -> Any:
    """Wrap the base model; only the matrices are trainable afterwards. Unless ``fresh``, weights will be loaded."""
    return _residual.apply(
        model,
        AT.pattern(names, config, location),
        config.rank,
        config.alpha,
        config.dropout,
        (lambda layer: layer.olora_init("default")) if fresh else None,
    )


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank * (in + out)``. ``UserError`` for a rank that a layer does not have."""
    sizes = AT.sizes(dims, config, location)
    _peft.check_rank(sizes, config.rank, "olora")
    return dims.layers * config.rank * sum(i + o for i, o in sizes)
