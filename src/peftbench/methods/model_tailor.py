"""Model Tailor (Zhu et al. 2024, arXiv 2402.12048, ICML 2024): after plain training, only a patch of it is kept.

Per linear layer, with W the trained and P the pre-trained matrix and H the Hessian of the layer's inputs on some
training examples (2 X X^T / n, with ``damping`` times the mean of its diagonal added):

- score of a weight: half the z-score of its change |W - P|, half that of its salience (W / d)^2, d the entry of the
  Cholesky factor of the inverse Hessian; z-scores over each row of a group of ``group`` columns. The ``share`` with the
  highest scores in each group is the patch.
- all other weights go back to P, column by column, and what each return changes in the layer's output is made up for
  by the columns after it, as optimal brain surgeon and SparseGPT (arXiv 2301.00774) do it: the patch's decoration.

Layers are taken in the order of the forward pass, those before already patched. As the released code
(didizhu-zju/Model-Tailor, main_model_tailor.py and llava/sparsegpt.py) has it: norms keep their trained values, the
connector goes back to its pre-trained ones (``reset_connector``), 128 examples, damping 0.01, groups of 128 columns.
The paper's text was not at hand. Unconfirmed: the sign of the compensation, which in that code is the opposite of
SparseGPT's and makes the output's error larger (``compensation: as_coded``; the default is SparseGPT's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from peftbench.methods._dynamics import Losses, PostHoc
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

TITLE = "Model Tailor"
TRAINS = True
IN_PLACE = True
MERGEABLE = True
SIGNS = {"surgeon": -1.0, "as_coded": 1.0, "none": 0.0}


class Config(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings beside those of the selection."""

    share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Of each linear layer's trained weights that are kept."""
    samples: Annotated[int, Meta(ge=1)] = 128
    """Training examples for the Hessians."""
    damping: Annotated[float, Meta(gt=0)] = 0.01
    """Added to the Hessian's diagonal, as a share of its mean."""
    group: Annotated[int, Meta(ge=1)] = 128
    """Columns that are scored together."""
    compensation: Literal["surgeon", "as_coded", "none"] = "surgeon"
    """How the patch makes up for what is put back."""
    reset_connector: bool = True
    """Put a tuned connector back to its pre-trained weights."""


def patched(
    trained: torch.Tensor, base: torch.Tensor, hessian: torch.Tensor, config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tailored matrix (out, in), and which of its entries are the patch; ``hessian`` is (in, in), not damped."""
    import torch

    factor = _inverse_factor(hessian, config.damping)
    sign = SIGNS[config.compensation]
    rest, result = trained.clone(), trained.clone()
    patch = torch.zeros_like(trained, dtype=torch.bool)
    change = (trained - base).abs()
    columns = trained.shape[1]
    for start in range(0, columns, config.group):
        end = min(start + config.group, columns)
        block = rest[:, start:end]
        diagonal = factor[start:end, start:end].diagonal()
        score = 0.5 * _scored(change[:, start:end]) + 0.5 * _scored((block / diagonal).square())
        kept = max(1, round(config.share * score.numel()))
        order = torch.argsort(score.flatten(), descending=True, stable=True)
        inside = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        inside[order[:kept]] = True
        patch[:, start:end] = inside.view_as(score)
        errors = torch.zeros_like(block)
        for i in range(start, end):
            value = torch.where(patch[:, i], rest[:, i], base[:, i])
            result[:, i] = value
            error = (rest[:, i] - value) / factor[i, i]
            errors[:, i - start] = error
            rest[:, i + 1 : end] += sign * error[:, None] * factor[i, i + 1 : end][None]
        rest[:, end:] += sign * errors @ factor[start:end, end:]
    return result, patch


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped Hessian."""
    import torch

    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0  # inputs that never occur
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _scored(values: torch.Tensor) -> torch.Tensor:
    """z-scores over each row; 0 in rows whose values are all equal."""
    import torch

    deviation = values.std(dim=1, keepdim=True) if values.shape[1] > 1 else torch.zeros_like(values)
    centred = values - values.mean(dim=1, keepdim=True)
    return torch.where(deviation > 0, centred / deviation, 0.0)


class Tailor(PostHoc):
    """Measures Hessians, layer by layer, and patches."""

    def __init__(self, tuned: Any, config: Config) -> None:
        super().__init__(tuned)
        self.config, self.model = config, tuned.model
        self.own, self.connector = list(tuned.method_parameters), list(tuned.connector_parameters)

    def after_training(self, losses: Losses) -> None:
        """Replace the trained matrices by the tailored ones."""
        import torch
        from torch.nn import Linear

        if self.config.reset_connector:
            for name in self.connector:
                self.parameters[name].data.copy_(self.base(name))
        blocks: dict[str, dict[str, Any]] = {}
        for name in self.own:
            path, _, kind = name.rpartition(".")
            module = self.model.get_submodule(path)
            if kind == "weight" and isinstance(module, Linear):
                blocks.setdefault(_block(path), {})[name] = module
        with torch.no_grad():
            for matrices in blocks.values():
                hessians = self._hessians(matrices, losses)
                for name in matrices:
                    parameter = self.parameters[name]
                    merged, _ = patched(parameter.data, self.base(name), hessians.pop(name), self.config)
                    parameter.data.copy_(merged)

    def _hessians(self, matrices: dict[str, Any], losses: Losses) -> dict[str, torch.Tensor]:
        """Of the inputs of linear layers, over all tokens of the samples."""
        import torch

        found: dict[str, torch.Tensor] = {}
        counts = dict.fromkeys(matrices, 0)

        def gather(name: str, inputs: torch.Tensor) -> None:
            rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
            counts[name] += len(rows)
            with torch.autocast(rows.device.type, enabled=False):
                product = 2.0 * rows.T @ rows
            found[name] = found[name] + product if name in found else product

        handles = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: gather(name, inputs[0]))
            for name, module in matrices.items()
        ]
        try:
            for _ in losses(self.config.samples):
                pass
        finally:
            for handle in handles:
                handle.remove()
        return {name: total / counts[name] for name, total in found.items()}


def _block(path: str) -> str:
    """The decoder layer of a module: its path up to the first number."""
    head: list[str] = []
    for piece in path.split("."):
        head.append(piece)
        if piece.isdigit():
            break
    return ".".join(head)


def dynamics(tuned: Any, config: Config, seed: int) -> Tailor:
    """What happens after training; ``seed`` is not used."""
    return Tailor(tuned, config)


def kept_memory(config: Config) -> tuple[int, float, bool]:
    """Copies in the base model's type, further bytes per trained parameter, and whether the connector has them too.

    With the copy of the trained weights during the merge. The Hessians of one decoder layer come on top.
    """
    return 1, 4.0, True
