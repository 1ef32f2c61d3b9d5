"""Random mask: selected modules are trained, but a random half of each tensor stays as it was pre-trained.

A baseline of the SPIDER line (WenkeHuang/NRCA, llava/train/RandomMask.py, ``MASK_RATIO`` 0.5): the mask is drawn once
per tensor, each weight by itself, and after each step the protected ones are put back. Drawn from the run's seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods._dynamics import Masked, generator
from peftbench.methods._selection import (
    DEFAULT_LOCATION,
    LOCATIONS,
    Selection,
    apply,
    trainable_count,
    trained_layers,
)

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT_LOCATION", "LOCATIONS", "apply", "trainable_count", "trained_layers"]

TITLE = "Random mask"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    protected: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    """Probability of each weight to stay."""
    on_connector: bool = True
    """Whether a tuned connector is masked too, as in the released code."""


def drawn(shape: tuple[int, ...], share: float, seed: int, name: str) -> torch.Tensor:
    """A mask of that shape, true with probability ``share``, the same on every device."""
    import torch

    return torch.rand(shape, generator=generator(seed, "random mask", name)) < share


def dynamics(tuned: Any, config: Config, seed: int) -> Masked:
    """What happens around each step."""

    def mask(name: str, base: torch.Tensor) -> torch.Tensor:
        return drawn(tuple(base.shape), config.protected, seed, name).to(base.device)

    return Masked(tuned, config.on_connector, mask)


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too."""
    return 1, 1.0, config.on_connector
