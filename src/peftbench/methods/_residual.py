"""LoRA that starts from a part of the weights, which the frozen weights then lack (PiSSA, OLoRA).

The frozen weights in memory are ``W - s B0 A0``, rounded to their type; those on disk stay as they are. What is saved
is a plain LoRA of twice the rank, ``[B, -B0] [A; A0]``, as peft converts such adapters: any program that loads it onto
the base model gets the tuned model within rounding. Here it also holds all that makes the frozen weights again to the
bit: they are computed from the saved ``A0`` and ``B0`` as peft computed them, never by decomposing the weights anew,
which another machine may do otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.methods import _peft

if TYPE_CHECKING:
    import torch

START = "peftbench_start"
"""Attribute of a LoRA layer that was decomposed: its first A and B. No buffer, so that nothing else saves it."""


def apply(
    model: Any, pattern: str, rank: int, alpha: float, dropout: float, decompose: Callable[[Any], None] | None
) -> Any:
    """Wrap the base model; ``decompose`` gives a LoRA layer of peft its start, None where weights will be loaded."""
    import torch
    from peft import LoraConfig

    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, task_type="CAUSAL_LM"
    )
    model = _peft.wrap(model, settings)
    if decompose is not None:
        # Only now: peft itself does it before it rounds A and B to the type of the weights, and back to fp32, so that
        # what is left of bf16 weights would not fit to them.
        for _, layer in _layers(model):
            with torch.no_grad():
                decompose(layer)
            setattr(layer, START, tuple(weight.detach().cpu().clone() for weight in _pair(layer)))
    return model


def snapshot(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """What is saved: A over A0 and B beside -B0 of every layer; its configuration (changed in place)."""
    import torch

    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    state = {}
    for path, layer in _layers(model):
        a, b = (weight.detach().cpu() for weight in _pair(layer))
        a0, b0 = getattr(layer, START, None) or (torch.zeros_like(a), torch.zeros_like(b))
        state[f"{path}.lora_A.weight"] = torch.cat([a, a0])
        state[f"{path}.lora_B.weight"] = torch.cat([b, -b0], dim=1)
    return state


def load(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put saved weights into a model that ``apply`` made, and take their start out of its frozen weights.

    A model that was decomposed already must have the same start: ``UserError`` where it has not.
    """
    import torch

    for path, layer in _layers(model):
        a, a0 = weights[f"{path}.lora_A.weight"].chunk(2)
        b, negative = weights[f"{path}.lora_B.weight"].chunk(2, dim=1)
        start = getattr(layer, START, None)
        frozen = layer.get_base_layer().weight
        if start is None:
            setattr(layer, START, (a0, -negative))
            scale = layer.scaling["default"]
            first, second = (-negative).to(frozen.device), a0.to(frozen.device)
            frozen.data = (frozen.data.to(torch.float32) - scale * first @ second).to(frozen.dtype)
        elif not (torch.equal(start[0], a0) and torch.equal(start[1], -negative)):
            raise UserError(
                f"{path}: its weights decompose in another way here than where the run was started: "
                "delete the run's folder and train again"
            )
        with torch.no_grad():
            for own, new in zip(_pair(layer), (a, b), strict=True):
                own.copy_(new)


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer))


def _pair(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight
