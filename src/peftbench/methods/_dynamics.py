"""What a method does to weights around each optimizer step: the part that all such methods share.

``dynamics(tuned, config, seed)`` of a method makes one such object; the training loop keeps it and calls it. Works on
full tensors, in one process, under DDP (every process holds the same) and under ZeRO 1 and 2, whose partitioned
gradients are gathered and whose fp32 master copies are written to as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Losses = Callable[[int], "Iterator[torch.Tensor]"]
"""Of a number of training examples: their losses, one by one, each divided by the supervised tokens of all."""


class Dynamics:
    """Keeps the pre-trained values of what is trained, by name; does nothing else.

    With ``connector`` the connector's tensors are treated like the method's own, as the released code of SPIDER does.
    Created from a model that still has its pre-trained values.
    """

    def __init__(self, tuned: Any, connector: bool = True) -> None:
        self.parameters: dict[str, Any] = dict(tuned.method_parameters)
        if connector:
            self.parameters |= tuned.connector_parameters
        self.pretrained = {name: compact(parameter.detach()) for name, parameter in self.parameters.items()}
        self.gradient_scale = 1.0
        """What the loop's clipping is about to multiply gradients with, where the optimizer itself does it."""

    def penalty(self) -> Any:
        """Added to the loss of a global batch, once; None for nothing."""
        return None

    def before_step(self) -> None:
        """Called when the gradients of a global batch are there, before the optimizer takes its step."""

    def after_step(self) -> None:
        """Called when the optimizer has changed the weights."""

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Tensors by kind and parameter: all that a continued run needs."""
        return {"pretrained": self.pretrained}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Take over what ``state_dict`` gave; ``ValueError`` where it is of other parameters."""
        for kind, own in self.state_dict().items():
            if state.get(kind, {}).keys() != own.keys():
                raise ValueError(f"{kind}: not the state of these parameters")
            for name, tensor in state[kind].items():
                own[name] = tensor.to(self.parameters[name].device)

    def nbytes(self) -> int:
        """Memory that it holds."""
        return sum(t.numel() * t.element_size() for kind in self.state_dict().values() for t in kind.values())

    def base(self, name: str) -> torch.Tensor:
        """Pre-trained values of a parameter, fp32."""
        return self.pretrained[name].float()

    def gradient(self, name: str) -> torch.Tensor | None:
        """The gradient of the global batch, fp32, as the optimizer will take it; None where there is none."""
        parameter = self.parameters[name]
        if hasattr(parameter, "_hp_mapping"):
            from deepspeed.utils import safe_get_full_grad

            found = safe_get_full_grad(parameter)
        else:
            found = parameter.grad
        if found is None:
            return None
        found = found.detach().float()
        return found if self.gradient_scale == 1.0 else found * self.gradient_scale

    def write(self, name: str, value: torch.Tensor) -> None:
        """Set a parameter, and where ZeRO keeps a master copy of it, that too."""
        parameter = self.parameters[name]
        parameter.data.copy_(value)
        if hasattr(parameter, "_hp_mapping"):
            from deepspeed.utils import safe_set_full_fp32_param

            safe_set_full_fp32_param(parameter, parameter.data)


class Masked(Dynamics):
    """Holds a part of the weights at their pre-trained values: ``protected`` is put back after each step.

    The optimizer's moments go on as if nothing were masked.
    """

    def __init__(
        self, tuned: Any, connector: bool, mask: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(tuned, connector)
        self.protected = {name: mask(name, self.base(name)) for name in self.parameters}

    def after_step(self) -> None:
        """Put the protected weights back."""
        import torch

        for name, parameter in self.parameters.items():
            self.write(name, torch.where(self.protected[name], self.base(name), parameter.data))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The pre-trained values and the masks."""
        return {**super().state_dict(), "protected": self.protected}


class PostHoc(Dynamics):
    """For methods that train plainly and change the weights afterwards: ``after_training`` does that in place.

    It is called in evaluation mode by every process, after the last epoch, and before an earlier epoch's weights are
    evaluated or kept (which are then put back): what is saved is always the merged model.
    """

    def after_training(self, losses: Losses) -> None:
        """Replace the trained values by the merged ones."""
        raise NotImplementedError


def compact(values: torch.Tensor) -> torch.Tensor:
    """A copy, in bf16 where that loses nothing: a base model in bf16 is trained in fp32 copies."""
    import torch

    short = values.to(torch.bfloat16)
    return short if torch.equal(short.to(values.dtype), values) else values.clone()


def generator(seed: int, purpose: str, name: str) -> torch.Generator:
    """A CPU generator for one tensor, the same on every machine and in every process."""
    import torch

    digest = hashlib.sha256(f"{seed}|{purpose}|{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def mean_distance(dynamics: Dynamics, power: int) -> torch.Tensor:
    """Mean over tensors of the mean of ``|w - w_pretrained| ** power``.

    Differences are formed again in the backward pass, one tensor at a time, instead of being kept for it.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def distance(parameter: torch.Tensor, name: str) -> torch.Tensor:
        difference = parameter - dynamics.base(name)
        return difference.abs().mean() if power == 1 else difference.square().mean()

    terms = [
        checkpoint(distance, parameter, name, use_reentrant=False, preserve_rng_state=False)
        for name, parameter in dynamics.parameters.items()
    ]
    return torch.stack(terms).mean()
