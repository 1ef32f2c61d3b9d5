"""AdamW in two groups (method and connector) and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from peftbench.spec import Optim
    from peftbench.training.adapt import Tuned


def warmup_steps(total: int, ratio: float) -> int:
    """Steps of warm-up: the share of all optimizer steps, rounded up (as transformers' Trainer does)."""
    return math.ceil(total * ratio)


def lr_factor(schedule: str, step: int, warmup: int, total: int) -> float:
    """Learning rate of step ``step`` (from 0) over its peak; equal to ``transformers.get_scheduler``.

    Linear from 0 during warm-up (so the first of its steps changes nothing), then to 0 along half a cosine or
    a line, or constant.
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def make_optimizer(tuned: Tuned, optim: Optim) -> torch.optim.AdamW:
    """One group per non-empty part; each carries its peak rate as ``peak_lr`` and its ``name``."""
    import torch

    parts = (
        ("method", tuned.method_parameters, optim.learning_rate),
        ("connector", tuned.connector_parameters, optim.connector_learning_rate),
        ("vision", tuned.vision_parameters, optim.connector_learning_rate),
    )
    groups: list[dict[str, Any]] = [
        {"params": list(parameters.values()), "lr": lr, "peak_lr": lr, "name": name}
        for name, parameters, lr in parts
        if parameters
    ]
    # fused: one kernel for hundreds of small matrices; otherwise they dominate a small model's step.
    return torch.optim.AdamW(
        groups,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def set_learning_rates(optimizer: Any, factor: float) -> dict[str, float]:
    """Scale all groups by ``factor`` of their peak; the rates by group name."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        rates[group["name"]] = group["lr"]
    return rates
