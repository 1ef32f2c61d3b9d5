"""L2 to the pre-trained weights: selected modules are trained with a penalty on their squared distance from w*.

``strength`` times the mean over tensors of the mean of ``(w - w*)^2`` is added to the loss of each global batch, once
(Xuhong et al. 2018, L2-SP, arXiv 1802.01483). Form and strength are those of the same group's later code
(WenkeHuang/NRCA, llava/train/LossTwoReg.py); that SPIDER's paper compares with this form is unconfirmed. The losses
that a run logs are those of the data alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods._dynamics import Dynamics, mean_distance
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

TITLE = "L2 to pre-trained"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    strength: Annotated[float, Meta(ge=0)] = 1e-3
    """Factor of the penalty."""
    on_connector: bool = True
    """Whether a tuned connector is held back too, as in that code."""


class Penalised(Dynamics):
    """Adds the penalty."""

    def __init__(self, tuned: Any, config: Config) -> None:
        super().__init__(tuned, config.on_connector)
        self.strength = config.strength

    def penalty(self) -> torch.Tensor:
        """The penalty at the present weights, a scalar."""
        return self.strength * mean_distance(self, 2)


def dynamics(tuned: Any, config: Config, seed: int) -> Penalised:
    """What happens around each step; ``seed`` is not used."""
    return Penalised(tuned, config)


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too.

    With the penalty's gradients, which are there beside those of the loss for a while.
    """
    return 1, 4.0, config.on_connector
