"""SPIDER: Specialization via Importance Discrepancy Evaluation for Refinement (arXiv 2411.10928, ICML 2025).

Per trained tensor, with w* its pre-trained values and S the sum of the gradients of all steps so far:

    I = sigmoid(z(|w*|)), G = sigmoid(z(|S|)), z(x) = (x - mean x) / std x (unbiased), zeros for an all-zero tensor
    M = G / (I + G) where I < G, else 0; divided by the mean of its non-zero entries, then limited to 1
    w = (1 - M) w* + M w_stepped, after each optimizer step; Adam's moments are not masked.

Source: the released code (WenkeHuang/SPIDER, Code/train/SPIDER.py), of the paper only the abstract was at hand.
Unconfirmed against the paper's equations: that the blend is with the pre-trained weights and not with those before the
step; that gradients are summed with their sign; what happens to tensors whose magnitudes are all equal
(``equal_weights``), such as norms of ones, where the code divides by zero, compares with NaN, and so never changes
them. That code reads gradients after the step, which recent versions of DeepSpeed refuse, and writes blended values to
the master copies alone; here gradients are read before the step and both copies are written. I is computed again in
each step instead of kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from peftbench.methods._dynamics import Dynamics
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

TITLE = "SPIDER"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    on_connector: bool = True
    """Whether a tuned connector is masked too, as in the released code."""
    equal_weights: Literal["neutral", "protected"] = "neutral"
    """Importance where all magnitudes of a tensor are equal: 1/2 everywhere, or the tensor never changes."""


def importance(values: torch.Tensor, equal: float) -> torch.Tensor:
    """Sigmoid of the z-scored magnitudes; zeros for zeros, ``equal`` where all magnitudes are the same."""
    import torch

    magnitude = values.abs()
    if not magnitude.any():
        return torch.zeros_like(magnitude)
    # A mean of equal numbers may be rounded, so their deviation need not come out as zero.
    if magnitude.min() == magnitude.max():
        return torch.full_like(magnitude, equal)
    return torch.sigmoid((magnitude - magnitude.mean()) / magnitude.std())


def mask(pretrained: torch.Tensor, accumulated: torch.Tensor, protect_equal: bool = False) -> torch.Tensor:
    """The share M of each optimizer step that is kept, from w* and S; zero where the old weight matters more."""
    import torch

    old = importance(pretrained, 1.0 if protect_equal else 0.5)
    new = importance(accumulated, 0.0 if protect_equal else 0.5)
    share = torch.where(old < new, new / (old + new), 0.0)
    moved = share != 0
    if moved.any():
        share = (share / share[moved].mean()).clamp(max=1.0)
    return share


class Spider(Dynamics):
    """Sums gradients and blends each step with the pre-trained weights."""

    def __init__(self, tuned: Any, config: Config) -> None:
        import torch

        super().__init__(tuned, config.on_connector)
        self.protect_equal = config.equal_weights == "protected"
        self.accumulated = {
            name: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for name, parameter in self.parameters.items()
        }

    def before_step(self) -> None:
        """Add the gradients of this global batch, as they are: signed, without weight decay."""
        for name, total in self.accumulated.items():
            gradient = self.gradient(name)
            if gradient is not None:
                total += gradient

    def after_step(self) -> None:
        """Blend; where M is 0 or 1 the result is exactly the pre-trained or the stepped value."""
        for name, parameter in self.parameters.items():
            base = self.base(name)
            share = mask(base, self.accumulated[name], self.protect_equal)
            self.write(name, (1 - share) * base + share * parameter.data)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The pre-trained values and the summed gradients."""
        return {**super().state_dict(), "accumulated": self.accumulated}


def dynamics(tuned: Any, config: Config, seed: int) -> Spider:
    """What happens around each step; ``seed`` is not used."""
    return Spider(tuned, config)


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too."""
    return 1, 4.0, config.on_connector
