"""DARE (Yu et al. 2023, arXiv 2311.03099, ICML 2024): after plain training, most of the change is dropped at random.

Each entry of the difference to the pre-trained weights is set to zero with probability ``drop``, and the others are
divided by ``1 - drop``, so that the expected change stays. As in the paper's code (yule-BUAA/MergeLM,
mask_weights_utils.py) each entry is drawn by itself and no tensor is left out. The paper finds that 0.9 and even 0.99
lose little; the share that the SPIDER line compares with is unconfirmed. Drawn from the run's seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from peftbench.methods._dynamics import Losses, PostHoc, generator
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

TITLE = "DARE"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    drop: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Probability of each change to be dropped."""
    rescale: bool = True
    """Divide the others by ``1 - drop``; false: random dropping alone, the paper's comparison."""
    on_connector: bool = True
    """Whether a tuned connector's changes are dropped too."""


def dropped(
    base: torch.Tensor, trained: torch.Tensor, kept: torch.Tensor, drop: float, rescale: bool
) -> torch.Tensor:
    """Pre-trained weights plus the ``kept`` changes; without rescaling those entries are the trained ones exactly."""
    import torch

    changed = base + (trained - base) / (1.0 - drop) if rescale and drop else trained
    return torch.where(kept, changed, base)


class Dare(PostHoc):
    """Drops and rescales."""

    def __init__(self, tuned: Any, config: Config, seed: int) -> None:
        super().__init__(tuned, config.on_connector)
        self.config, self.seed = config, seed

    def after_training(self, losses: Losses) -> None:
        """Replace the trained values; no data is needed."""
        import torch

        for name, parameter in self.parameters.items():
            draw = torch.rand(parameter.shape, generator=generator(self.seed, "dare", name))
            kept = (draw >= self.config.drop).to(parameter.device)
            merged = dropped(self.base(name), parameter.data, kept, self.config.drop, self.config.rescale)
            parameter.data.copy_(merged)


def dynamics(tuned: Any, config: Config, seed: int) -> Dare:
    """What happens after training."""
    return Dare(tuned, config, seed)


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too.

    With the copy of the trained weights during the merge.
    """
    return 1, 4.0, config.on_connector
