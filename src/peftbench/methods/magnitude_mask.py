"""Magnitude mask: selected modules are trained, but the largest half of each tensor stays as it was pre-trained.

A baseline of the SPIDER line (WenkeHuang/SPIDER, Code/train/MagnitudeMask.py, ``MASK_RATIO`` 0.5): per tensor, weights
are ranked once by their pre-trained magnitude, and after each step the protected ones are put back. That code was at
hand, no paper that defines the method: how equal magnitudes rank is ours (the earlier one is larger).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods._dynamics import Masked
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

TITLE = "Magnitude mask"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    protected: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    """Share of each tensor that stays, the largest magnitudes; rounded down to whole weights."""
    on_connector: bool = True
    """Whether a tuned connector is masked too, as in the released code."""


def largest(values: torch.Tensor, share: float) -> torch.Tensor:
    """True for the ``share`` of the entries with the largest magnitudes."""
    import torch

    found = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    order = torch.argsort(values.abs().flatten(), descending=True, stable=True)
    found[order[: int(share * values.numel())]] = True
    return found.view_as(values)


def dynamics(tuned: Any, config: Config, seed: int) -> Masked:
    """What happens around each step; ``seed`` is not used."""
    return Masked(tuned, config.on_connector, lambda name, base: largest(base, config.protected))


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too."""
    return 1, 1.0, config.on_connector
