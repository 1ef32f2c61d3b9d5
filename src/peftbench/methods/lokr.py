"""LoKr (Yeh et al. 2023, LyCORIS, arXiv 2309.14859): the Kronecker product of a small matrix and a low-rank one.

Rank and alpha 8 and factors near the square root are peft's; the learning rate is that of peft's comparison of methods
(the paper tunes diffusion models).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods import _peft
from peftbench.methods._peft import LinearConfig, LinearLayers

if TYPE_CHECKING:
    from peftbench.models.arch import Dims
    from peftbench.spec import ModelNames

TITLE = "LoKr"
TRAINS = MERGEABLE = True
LOCATIONS, DEFAULT_LOCATION = _peft.LOCATIONS, "both"
LEAF_SETTINGS = _peft.LEAF_SETTINGS
AT = LinearLayers("lokr", DEFAULT_LOCATION)


class Config(LinearConfig, frozen=True, kw_only=True):
    """Settings; ``learning_rate`` is the default for runs that give none."""

    learning_rate: float = 1e-4
    rank: _peft.Rank = 8
    alpha: _peft.Scale | None = None
    """Scale times rank; None: the rank."""
    factor: Annotated[int, Meta(ge=2)] | None = None
    """Width of the small matrix, if it divides that of the layer; None: the divisor nearest to its square root."""


def apply(model: Any, names: ModelNames, config: Config, location: str) -> Any:
    """Wrap the base model; only the factors are trainable afterwards."""
    from peft import LoKrConfig

    settings = LoKrConfig(
        r=config.rank,
        alpha=config.rank if config.alpha is None else config.alpha,
        decompose_factor=config.factor or -1,
        target_modules=AT.pattern(names, config, location),
        task_type="CAUSAL_LM",
    )
    return _peft.wrap(model, settings)


def trainable_count(dims: Dims, config: Config, location: str) -> int:
    """Per linear layer with ``in = m n`` and ``out = l k``: ``l m``, and ``rank (k + n)`` or, if less, ``k n``.

    The large factor is low-rank where the rank is below half of ``max(k, n)``.
    """
    total = 0
    for width, height in AT.sizes(dims, config, location):
        (m, n), (small, k) = _factors(width, config.factor), _factors(height, config.factor)
        total += small * m + (config.rank * (k + n) if config.rank < max(k, n) / 2 else k * n)
    return dims.layers * total


def _factors(width: int, factor: int | None) -> tuple[int, int]:
    """Two factors of a width as peft takes them, the small one first."""
    if factor and width % factor == 0:
        return factor, width // factor
    limit = factor or width
    small, large = 1, width
    while small < large:
        candidate = next(d for d in range(small + 1, width + 1) if width % d == 0)
        if candidate > limit:
            break
        small, large = candidate, width // candidate
    return min(small, large), max(small, large)
