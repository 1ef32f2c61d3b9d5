"""PiSSA (Meng et al. 2024, arXiv 2404.02948): LoRA that starts from the principal singular vectors of the weights.

What is left of the weights is frozen; step 0 is the base model. Defaults are those of the authors' scripts: rank 128,
alpha equal to the rank, no dropout, learning rate 2e-5, all linear layers; the full decomposition, which takes minutes
on a model of 7B, unless ``iterations`` asks for the randomised one. What is saved is a LoRA of twice the rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods import _peft, _residual
from peftbench.methods._peft import LinearConfig, LinearLayers
from peftbench.methods._residual import load, snapshot

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

__all__ = ["load", "snapshot"]

TITLE = "PiSSA"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("pissa", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 2e-5
    rank: _peft.Rank = 128
    alpha: _peft.Scale | None = None
    """Scale times rank; None: the rank."""
    dropout: _peft.Dropout = 0.0
    iterations: Annotated[int, Meta(ge=1)] | None = None
    """Subspace iterations of the randomised decomposition; None: the full one."""


def apply(model: Any, names: ModelNames, config: Config, location: str, fresh: bool = True) -> Any:
    """Wrap the base model; only the matrices are trainable afterwards. Unless ``fresh``, weights will be loaded."""
    start = "pissa" if config.iterations is None else f"pissa_niter_{config.iterations}"
    return _residual.apply(
        model,
        AT.pattern(names, config, location),
        config.rank,
        config.rank if config.alpha is None else config.alpha,
        config.dropout,
        (lambda layer: layer.pissa_init("default", start)) if fresh else None,
    )


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer: ``rank * (in + out)``. ``UserError`` for a rank that a layer does not have."""
    sizes = AT.sizes(dims, config, location)
    _peft.check_rank(sizes, config.rank, "pissa")
    return dims.layers * config.rank * sum(i + o for i, o in sizes)
