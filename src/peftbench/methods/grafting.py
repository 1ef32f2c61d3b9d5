"""Grafting: a few of the trained values, put onto the pre-trained model.

Panigrahi et al. 2023, "Task-Specific Skill Localization in Fine-tuned Language Models", arXiv 2302.06600.

After plain training a binary mask says which weights take their trained value; all others keep the pre-trained one.
As in the paper's code (src/graft_trainer.py): the mask starts from the base patch, the ``share`` of all trained
weights that moved farthest; a weight goes ``b + (1 - 2b) sigmoid(s - bias)`` of its way, with b the base patch, and s,
which starts uniform in [0, 1), follows the gradient of the loss at the so grafted model; of the rounded masks on the
way, the best one counts. There it is the best accuracy on training and development data, here the lowest loss on the
same ``samples`` of the training data. Its script has a share of 1e-7, 10 steps (its README 100) and a learning rate
of 1e7, for classification with RoBERTa; what comparisons on multimodal models use is unconfirmed: ``share`` is the
10 % that Model Tailor compares at, and ``steps: 0`` takes the base patch as it is.
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

TITLE = "Grafting"
TRAINS = True
IN_PLACE = True
MERGEABLE = True


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Of the trained weights in the base patch."""
    steps: Annotated[int, Meta(ge=0)] = 10
    """Of the mask's optimisation."""
    mask_learning_rate: Annotated[float, Meta(ge=0)] = 1e7
    """Of plain gradient descent on the mask."""
    sigmoid_bias: float = 10.0
    """Distance of the mask from the middle at the start; the script's own value is unconfirmed."""
    samples: Annotated[int, Meta(ge=1)] = 128
    """Training examples that the mask is optimised on."""
    on_connector: bool = True
    """Whether a tuned connector is grafted too."""


def base_patch(moves: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """True for the ``share`` of all entries together that are largest in magnitude; never for those that are zero."""
    import torch

    sizes = torch.cat([move.abs().flatten() for move in moves.values()])
    count = int(share * sizes.numel())
    if not count:
        return {name: torch.zeros_like(move, dtype=torch.bool) for name, move in moves.items()}
    threshold = sizes.kthvalue(sizes.numel() - count + 1).values
    return {name: (move.abs() >= threshold) & (move != 0) for name, move in moves.items()}


class Graft(PostHoc):
    """Finds the mask and grafts."""

    def __init__(self, tuned: Any, config: Config, seed: int) -> None:
        super().__init__(tuned, config.on_connector)
        self.config, self.seed = config, seed

    def after_training(self, losses: Losses) -> None:
        """Replace trained values outside the mask by the pre-trained ones."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        patch = base_patch(
            {name: value - self.base(name) for name, value in trained.items()}, self.config.share
        )
        best = self._optimised(trained, patch, losses) if self.config.steps else patch
        self._set(trained, {name: mask.float() for name, mask in best.items()})

    def _set(self, trained: dict[str, torch.Tensor], amounts: dict[str, torch.Tensor]) -> None:
        """The pre-trained weights moved by these amounts of the way; 0 and 1 give either end exactly."""
        for name, amount in amounts.items():
            self.parameters[name].data.copy_((1 - amount) * self.base(name) + amount * trained[name])

    def _optimised(
        self, trained: dict[str, torch.Tensor], patch: dict[str, torch.Tensor], losses: Losses
    ) -> dict[str, torch.Tensor]:
        import torch

        config = self.config
        raw = {
            name: torch.rand(value.shape, generator=generator(self.seed, "graft", name)).to(value.device)
            for name, value in trained.items()
        }
        start = {name: mask.float() for name, mask in patch.items()}
        turn = {name: 1 - 2 * value for name, value in start.items()}

        def amounts() -> dict[str, torch.Tensor]:
            return {n: start[n] + turn[n] * torch.sigmoid(raw[n] - config.sigmoid_bias) for n in raw}

        best, lowest = patch, float("inf")
        for step in range(config.steps + 1):
            rounded = {name: amount.round() > 0 for name, amount in amounts().items()}
            self._set(trained, {name: mask.float() for name, mask in rounded.items()})
            with torch.no_grad():
                loss = float(sum(losses(config.samples), torch.zeros(())))
            if loss < lowest:
                best, lowest = rounded, loss
            if step < config.steps:
                self._set(trained, amounts())
                for name, gradient in self._gradients(losses).items():
                    open_ = torch.sigmoid(raw[name] - config.sigmoid_bias)
                    slope = turn[name] * (trained[name] - self.base(name)) * open_ * (1 - open_)
                    raw[name] -= config.mask_learning_rate * gradient * slope
        return best

    def _gradients(self, losses: Losses) -> dict[str, torch.Tensor]:
        """Of the mean loss over the samples, by the weights as they are."""
        import torch

        names = list(self.parameters)
        total = [torch.zeros_like(parameter) for parameter in self.parameters.values()]
        for loss in losses(self.config.samples):
            found = torch.autograd.grad(loss, [self.parameters[name] for name in names], allow_unused=True)
            for one, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    one += gradient
        return dict(zip(names, total, strict=True))


def dynamics(tuned: Any, config: Config, seed: int) -> Graft:
    """What happens after training."""
    return Graft(tuned, config, seed)


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too.

    With the copies of the merge: trained weights (twice), mask, its start and its turn, and gradients, all fp32.
    """
    return 1, 28.0 if config.steps else 8.0, config.on_connector
