"""A method's own part in the training loop: around each optimizer step, and after training.

See ``peftbench.methods._dynamics`` for what a method provides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.training.batches import collate, derived_seed

if TYPE_CHECKING:
    import torch

    from peftbench.training.loop import Trainer


def make_dynamics(trainer: Trainer) -> Any:
    """The method's dynamics, or None; the model has been prepared and still has its pre-trained weights.

    ``UserError`` where processes hold parts of tensors (ZeRO 3): statistics over a whole one would be wrong.
    Where DeepSpeed fuses the optimizer step with the backward pass, the dynamics are put around that step.
    """
    tuned = trainer.tuned
    make = getattr(tuned.method, "dynamics", None)
    if make is None:
        return None
    if any(hasattr(parameter, "ds_id") for parameter in tuned.model.parameters()):
        raise UserError(
            f"method {trainer.spec.method} needs whole tensors in each process: use a ZeRO stage of 2 or less"
        )
    dynamics = make(tuned, tuned.settings, trainer.spec.seed)
    wrapper = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
    if wrapper is not None:
        step = wrapper.engine.step

        def around(*args: Any, **kwargs: Any) -> Any:
            dynamics.gradient_scale = _clipping(trainer, dynamics)
            dynamics.before_step()
            result = step(*args, **kwargs)
            dynamics.after_step()
            return result

        wrapper.engine.step = around
    return dynamics


def optimizer_step(trainer: Trainer) -> None:
    """The optimizer's step with the dynamics around it; with DeepSpeed both have happened already."""
    dynamics = trainer.dynamics
    apart = dynamics is not None and getattr(trainer.accelerator, "deepspeed_engine_wrapped", None) is None
    if apart:
        dynamics.before_step()
    trainer.optimizer.step()
    if apart:
        dynamics.after_step()


def _clipping(trainer: Trainer, dynamics: Any) -> float:
    """The factor by which DeepSpeed is about to clip: it does so inside its step."""
    limit = trainer.spec.optim.max_grad_norm
    if not limit:
        return 1.0
    from deepspeed.utils import safe_get_full_grad

    tuned = trainer.tuned
    squares = 0.0
    for group in (tuned.method_parameters, tuned.connector_parameters, tuned.vision_parameters):
        for parameter in group.values():
            gradient = safe_get_full_grad(parameter)
            squares += 0.0 if gradient is None else float(gradient.float().norm()) ** 2
    return float(min(1.0, limit / (squares**0.5 + 1e-6)))


def merge_back(trainer: Trainer, last: bool) -> Callable[[], None]:
    """Let a method that changes weights after training do so now; the result puts the trained weights back.

    Unless it is for the ``last`` time: then the merged weights stay.
    """
    dynamics = trainer.dynamics
    if not hasattr(dynamics, "after_training"):
        return lambda: None
    kept = {} if last else {name: p.detach().clone() for name, p in dynamics.parameters.items()}
    trainer.tuned.model.eval()
    dynamics.after_training(lambda count: example_losses(trainer, count))
    trainer.tuned.model.train()
    trainer.rest_vision()

    def put_back() -> None:
        for name, values in kept.items():
            dynamics.parameters[name].data.copy_(values)

    return put_back


def example_losses(trainer: Trainer, count: int) -> Iterator[torch.Tensor]:
    """Losses of ``count`` training examples (all, if there are fewer), drawn by the seed, one by one.

    Each is the sum over its supervised tokens divided by those of all, so that they add up to the mean. One at a time
    there is no padding, and the size of micro-batches cannot matter. Every process goes through the same ones, past
    DDP and ZeRO: gradients are to be asked for by ``torch.autograd.grad``.
    """
    order = random.Random(derived_seed(trainer.spec.seed, "after training"))
    chosen = order.sample(trainer.examples, min(count, len(trainer.examples)))
    supervised = sum(encoded.supervised for encoded in chosen)
    for encoded in chosen:
        image = trainer.images.load(encoded.image) if encoded.image else {}
        inputs = collate([(encoded, image)], trainer.pad_id, left=False)
        yield trainer.loss_sum(inputs, trainer.tuned.model) / supervised
