"""Pre-train the tiny CLIP tower on composed scenes with a label for every patch.

Naming whole pictures teaches a tower of this size styles by heart; labels per patch (which thing, is this its
centre, which colour) make its patch features say what is where, which counting, locating and captions need.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from peftbench.models.tiny.recipe import VisionRecipe
from peftbench.models.tiny.scenes import PATCH, compose_chunk, n_classes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CHUNK = 960  # scenes composed per task


def _batches(recipe: VisionRecipe, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches without end; chunks are composed ahead by ``workers`` processes (0: in this one)."""
    number = 0
    pool = ProcessPoolExecutor(workers) if workers else None
    try:
        ahead: list[Any] = []
        while True:
            while pool and len(ahead) < 2 * workers:
                ahead.append(pool.submit(compose_chunk, (recipe.seed, number, CHUNK, "train")))
                number += 1
            if pool:
                chunk = ahead.pop(0).result()
            else:
                chunk = compose_chunk((recipe.seed, number, CHUNK, "train"))
                number += 1
            for start in range(0, CHUNK - recipe.batch + 1, recipe.batch):
                yield tuple(part[start : start + recipe.batch] for part in chunk)
    finally:
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def normalise(pictures: Tensor) -> Tensor:
    """Return (n, 3, h, w) pixels as CLIP takes them, from values in 0..1."""
    import torch

    mean = torch.tensor(CLIP_MEAN, device=pictures.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=pictures.device).view(1, 3, 1, 1)
    return (pictures - mean) / std


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule of both phases: a rise over the first twentieth of the steps, then a cosine to zero."""
    import torch

    warm = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps))),
    )


def _spoil(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Vary light, tint and sharpness of a batch; the random numbers come from the CPU, equal on every device."""
    import torch
    import torch.nn.functional as F

    n, device = len(pictures), pictures.device

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=random) < share).to(device)

    tint = (0.85 + 0.3 * torch.rand(n, 3, 1, 1, generator=random)).to(device)
    light = (0.45 + 0.65 * torch.rand(n, 1, 1, 1, generator=random)).to(device)
    pictures = torch.where(some(0.4), pictures * tint, pictures)
    pictures = torch.where(some(0.25), pictures * light, pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, 1)
    pictures = torch.where(some(0.1), blurred, pictures)
    return pictures.clamp(0, 1)


def pretrain_tower(
    tower: Any,
    feature_layer: int,
    recipe: VisionRecipe,
    device: str,
    workers: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Train ``tower`` in place; return the loss log and the probe (share of patches named rightly, per split).

    The layers after ``feature_layer`` (counted from the end, as in LLaVA) get no gradient and stay as initialised:
    LLaVA never reads them. ``limit`` stops after that many steps with the schedule of the full recipe, to check a
    recipe's beginning.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    classes = n_classes()
    torch.manual_seed(recipe.seed)
    width = tower.config.hidden_size
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes + 1 + 3))
    tower.to(device).train()
    head.to(device)
    read = LayersRead(tower, feature_layer)
    parameters = [*read.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = warm_cosine(optimizer, recipe.steps)
    random = torch.Generator().manual_seed(recipe.seed)

    def named_rightly(split: str) -> float:
        """Share of the patches that show something whose thing or word is named, on fresh scenes of a split."""
        right = total = 0
        with torch.no_grad():
            for number in range(2):
                drawn, label, _ = map(torch.from_numpy, compose_chunk((recipe.seed + 1, number, 250, split)))
                pixels = normalise(drawn.permute(0, 3, 1, 2).float() / 255).to(device)
                named_as = head(read(pixels))[..., :classes].argmax(-1).cpu()
                right += int(((named_as == label) & (label > 0)).sum())
                total += int((label > 0).sum())
        return right / total

    log: list[dict[str, float]] = []
    started = time.monotonic()
    batches = _batches(recipe, workers)
    for step in range(min(recipe.steps, limit or recipe.steps)):
        drawn, label, centre = (torch.from_numpy(part).to(device) for part in next(batches))
        pictures = _spoil(drawn.permute(0, 3, 1, 2).float() / 255, random)
        out = head(read(normalise(pictures)))
        named = F.cross_entropy(
            out[..., :classes].flatten(0, 1), label.long().flatten(), label_smoothing=0.05
        )
        centred = F.binary_cross_entropy_with_logits(out[..., classes], centre.float())
        mean_colour = F.avg_pool2d(pictures, PATCH).flatten(2).transpose(1, 2)
        coloured = (out[..., -3:].sigmoid() - mean_colour).abs().mean()
        loss = named + centred + coloured
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step < 5 or step % 100 == 0 or step == recipe.steps - 1:
            log.append({"step": step, "loss": loss.item(), "name": named.item(), "centre": centred.item()})
            if step % 100 == 0:
                spent = time.monotonic() - started
                print(
                    f"vision {step}/{recipe.steps} loss {loss.item():.3f} name {named.item():.3f} {spent:.0f} s",
                    flush=True,
                )
            if step % 500 == 0:
                log[-1]["named_test"] = named_rightly("test")
                print(f"vision {step}: held-out artist {log[-1]['named_test']:.3f}", flush=True)
    batches.close()  # type: ignore[attr-defined]
    tower.eval()
    probe = {f"patches_named_{split}": named_rightly(split) for split in ("train", "test")}
    tower.to("cpu")
    return {"log": log, "probe": probe}


class LayersRead:
    """The part of a CLIP tower that LLaVA reads: everything up to ``feature_layer``."""

    def __init__(self, tower: Any, feature_layer: int) -> None:
        self.tower = tower
        n_layers = len(tower.encoder.layers)
        self.layers = tower.encoder.layers[: n_layers + 1 + feature_layer]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of that part."""
        parts = [self.tower.embeddings, self.tower.pre_layrnorm, self.layers]
        return [p for part in parts for p in part.parameters()]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the patch features, (n, patches, width), equal to ``hidden_states[feature_layer][:, 1:]``."""
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(pixels))
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden[:, 1:]
