"""Pre-train the tiny CLIP tower on composed scenes with a label for every patch.

Naming whole pictures teaches a tower of this size styles by heart; labels per patch (which thing, is this its
centre, which colour) make its patch features say what is where, which counting, locating and captions need.
Scenes are composed from sprites on the device; all random numbers are drawn on the CPU, so that every device sees
the same scenes. Only the training artists' drawings are used: the test artist stays unseen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import WORDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CANVAS = 96  # sprites are kept in squares of this side, their longer side CONTENT pixels
CONTENT = 90
SLOTS = 9  # things per scene at most
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the tower's pre-training."""

    steps: int = 6000
    batch: int = 512
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.05
    seed: int = 11


class SpriteBank:
    """All drawings of one split as one tensor, RGBA in 0..1, with the class of each (0 is background)."""

    def __init__(self, split: str, device: torch.device | str) -> None:
        import numpy as np
        import torch
        from PIL import Image

        images, labels, aspects, is_word = [], [], [], []
        for index, concept in enumerate(pack.concepts()):
            for style in pack.STYLES[split]:
                if style in concept.styles:
                    images.append(pack.sprite(concept.hex, style))
                    labels.append(1 + index)
                    is_word.append(False)
        for index, text in enumerate(WORDS):
            for face in pack.TYPEFACES[split]:
                mask = pack.word(text, face)
                drawn = Image.new("RGBA", mask.size, (20, 20, 20, 0))
                drawn.putalpha(mask)
                images.append(drawn)
                labels.append(1 + len(pack.concepts()) + index)
                is_word.append(True)
        squares = np.zeros((len(images), CANVAS, CANVAS, 4), dtype=np.uint8)
        for i, image in enumerate(images):
            longer = max(image.size)
            size = (max(1, image.width * CONTENT // longer), max(1, image.height * CONTENT // longer))
            left, top = (CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2
            squares[i, top : top + size[1], left : left + size[0]] = np.asarray(
                image.resize(size, Image.Resampling.BILINEAR)
            )
            aspects.append(image.width / image.height)
        rgba = torch.from_numpy(squares).permute(0, 3, 1, 2).to(device).float() / 255
        rgba[:, :3] *= rgba[
            :, 3:
        ]  # premultiplied: resampling must not bleed the colour of what is transparent
        self.rgba: Tensor = rgba
        self.label = torch.tensor(labels, device=device)
        self.aspect = torch.tensor(aspects)
        self.word_rows = torch.tensor([i for i, w in enumerate(is_word) if w])
        self.thing_rows = torch.tensor([i for i, w in enumerate(is_word) if not w])
        self.classes = 1 + len(pack.concepts()) + len(WORDS)
        self.device = device


class Scenes:
    """Compose batches of scenes with labels per patch."""

    def __init__(self, bank: SpriteBank, patch: int, seed: int, augment: bool = True) -> None:
        import torch

        self.bank, self.patch, self.augment = bank, patch, augment
        self.random = torch.Generator().manual_seed(seed)
        self.noise = torch.rand(64, 1, CANVAS, CANVAS, generator=self.random).to(bank.device)

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        import torch

        return torch.rand(*shape, generator=self.random) * (high - low) + low

    def _index(self, n: int, *shape: int) -> Tensor:
        import torch

        return torch.randint(n, shape, generator=self.random)

    def _layout(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return sprite row, centre x and y, longer side (pixels), each (n, SLOTS); side 0 = no thing there."""
        import torch

        bank = self.bank
        row = bank.thing_rows[self._index(len(bank.thing_rows), n, SLOTS)]
        x, y = torch.zeros(n, SLOTS), torch.zeros(n, SLOTS)
        side = torch.zeros(n, SLOTS)
        kind = self._uniform(n)
        jitter = self._uniform(n, SLOTS, 2, low=-3, high=3)

        single = kind < 0.3
        x[single, 0] = self._uniform(n, low=34, high=62)[single]
        y[single, 0] = self._uniform(n, low=34, high=62)[single]
        side[single, 0] = self._uniform(n, low=36, high=88)[single]

        quad = (kind >= 0.3) & (kind < 0.5)
        shown = self._uniform(n, 4) < 0.75
        across = self._uniform(n) < 0.5  # two things in the middle of the sides, or four in the corners
        at = torch.tensor(
            [[[24.0, 24], [72, 24], [24, 72], [72, 72]], [[25, 48], [71, 48], [48, 25], [48, 71]]]
        )[across.long()]
        pair = torch.where(
            self._uniform(n)[:, None] < 0.5, torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 1]])
        )
        shown = torch.where(across[:, None], pair.bool(), shown)
        x[quad, :4] = (at[..., 0] + jitter[:, :4, 0])[quad]
        y[quad, :4] = (at[..., 1] + jitter[:, :4, 1])[quad]
        side[quad, :4] = (self._uniform(n, 4, low=34, high=46) * shown)[quad]

        grid = (kind >= 0.5) & (kind < 0.8)
        two = row[:, :2]  # a grid shows one or two things many times, as counting tasks do
        mixed = torch.gather(two, 1, (self._uniform(n, SLOTS) < 0.35).long())
        row = torch.where(grid[:, None] & (self._uniform(n, 1) < 0.8), mixed, row)
        cell = torch.arange(SLOTS)
        x[grid] = (16.0 + 32 * (cell % 3) + jitter[..., 0])[grid]
        y[grid] = (16.0 + 32 * (cell // 3) + jitter[..., 1])[grid]
        fill = self._uniform(n, SLOTS) < self._uniform(n, 1, low=0.15, high=0.95)
        side[grid] = (self._uniform(n, SLOTS, low=24, high=31) * fill)[grid]

        words = kind >= 0.8
        word = bank.word_rows[self._index(len(bank.word_rows), n, 3)]
        row[words, :3] = word[words]
        height = self._uniform(n, 3, low=15, high=28)
        digits = self._uniform(n, 1) < 0.2
        height = torch.where(digits, height * 1.6, height)
        aspect = bank.aspect[row[:, :3]]
        longer = torch.where(aspect > 1, (height * aspect).clamp(max=90), height)
        reach = ((96 - longer * (aspect > 1) - height * (aspect <= 1)) / 2).clamp(min=0)
        x[words, :3] = (48 + self._uniform(n, 3, low=-1, high=1) * reach)[words]
        y[words, :3] = (torch.tensor([16.0, 80.0, 48.0]) + self._uniform(n, 3, low=-5, high=5))[words]
        side[words, :3] = (longer * (self._uniform(n, 3) < torch.tensor([0.8, 0.8, 0.35])))[words]
        with_thing = words & (side[:, 2] == 0)
        x[with_thing, 3], y[with_thing, 3] = 48.0, 48.0
        side[with_thing, 3] = self._uniform(n, low=30, high=40)[with_thing]
        return row, x, y, side

    def batch(self, n: int) -> dict[str, Tensor]:
        """Return ``pixels`` (n, 3, 96, 96) normalised, ``label`` and ``centre`` (n, p, p), ``colour`` (n, 3, p, p)."""
        import torch
        import torch.nn.functional as F

        device = self.bank.device
        row, x, y, side = (t.to(device) for t in self._layout(n))
        angle = self._uniform(n, SLOTS, low=-0.25, high=0.25) * (
            self._uniform(n, SLOTS) < (0.6 if self.augment else 0.0)
        )
        flip = torch.where(self._uniform(n, SLOTS) < 0.5, -1.0, 1.0)
        is_word = row >= len(self.bank.thing_rows)
        flip = torch.where(is_word, torch.ones((), device=device), flip.to(device))
        angle = torch.where(is_word, torch.zeros((), device=device), angle.to(device))

        low, high = self._uniform(n, 3, 1, 1, low=0.6), self._uniform(n, 3, 1, 1, low=0.6)
        ramp = torch.linspace(0, 1, CANVAS).view(1, 1, -1, 1) * (self._uniform(n, 1, 1, 1) < 0.6)
        picture = (low * (1 - ramp) + high * ramp).expand(n, 3, CANVAS, CANVAS).to(device)
        speckle = self.noise[self._index(64, n).to(device)] * (self._uniform(n, 1, 1, 1) < 0.35).to(device)
        other = self._uniform(n, 3, 1, 1, low=0.6).to(device)
        picture = picture * (1 - speckle) + other * speckle

        # Colours of each drawing are shifted, so that a thing is known by more than one artist's palette.
        shift = self._uniform(n, SLOTS, 3, 1, 1, low=0.7, high=1.2).to(device)
        mix = self._uniform(n, SLOTS, 1, 1, 1, low=-0.15, high=0.35).clamp(min=0).to(device)
        half = CANVAS / 2
        cover = torch.zeros(n, SLOTS, CANVAS, CANVAS, device=device)
        painted = torch.zeros_like(picture)
        for k in range(SLOTS):
            used = (side[:, k] > 0).nonzero().squeeze(1)
            if not len(used):
                continue
            scale = CONTENT / side[used, k]
            cos, sin = torch.cos(angle[used, k]) * scale, torch.sin(angle[used, k]) * scale
            dx, dy = (x[used, k] - half) / half, (y[used, k] - half) / half
            f = flip[used, k]
            theta = torch.stack(
                [f * cos, f * sin, -f * (cos * dx + sin * dy), -sin, cos, sin * dx - cos * dy], dim=1
            ).view(-1, 2, 3)
            at = F.affine_grid(theta, [len(used), 4, CANVAS, CANVAS], align_corners=False)
            art = F.grid_sample(self.bank.rgba[row[used, k]], at, mode="bilinear", align_corners=False)
            alpha, colour = art[:, 3:], art[:, :3]
            if self.augment:
                colour = colour * shift[used, k]
                gray = colour.mean(1, keepdim=True)
                colour = (colour * (1 - mix[used, k]) + gray * mix[used, k]).minimum(alpha).clamp(min=0)
            picture[used] = picture[used] * (1 - alpha) + colour
            painted[used] = painted[used] * (1 - alpha) + colour
            cover[used] *= 1 - alpha
            cover[used, k] = alpha[:, 0]

        p = CANVAS // self.patch
        share = F.avg_pool2d(cover, self.patch)
        best, slot = share.max(1)
        label = self.bank.label[row].gather(1, slot.flatten(1)).view(n, p, p)
        label = torch.where(best > 0.2, label, torch.zeros((), dtype=label.dtype, device=device))
        centre = torch.zeros(n, p * p, device=device)
        at = (y.clamp(0, CANVAS - 1) // self.patch * p + x.clamp(0, CANVAS - 1) // self.patch).long()
        centre.scatter_reduce_(1, at, (side > 0).float(), "amax")
        weight = F.avg_pool2d(cover.sum(1, keepdim=True), self.patch)
        colour = F.avg_pool2d(painted, self.patch) / weight.clamp(min=0.05)

        if self.augment:
            blur = (self._uniform(n) < 0.12).to(device)
            picture = torch.where(
                blur.view(-1, 1, 1, 1),
                F.avg_pool2d(F.pad(picture, (2, 2, 2, 2), mode="replicate"), 5, 1),
                picture,
            )
            light = self._uniform(n, 1, 1, 1, low=0.55, high=1.1).to(device)
            picture = torch.where(
                (self._uniform(n, 1, 1, 1) < 0.3).to(device), picture * light, picture
            ).clamp(0, 1)
        mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
        std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)
        return {
            "pixels": (picture - mean) / std,
            "label": label,
            "centre": centre.view(n, p, p),
            "colour": colour.clamp(0, 1),
            "covered": weight[:, 0] > 0.2,
        }


def pretrain_tower(
    tower: torch.nn.Module, feature_layer: int, recipe: VisionRecipe, device: str, limit: int | None = None
) -> dict[str, Any]:
    """Train ``tower`` in place; return the loss log and the probe (share of patches named rightly, per split).

    ``limit`` stops after that many steps with the schedule of the full recipe, to check a recipe's beginning.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    bank = SpriteBank("train", device)
    patch = tower.config.patch_size
    scenes = Scenes(bank, patch, recipe.seed)
    torch.manual_seed(recipe.seed)
    width = tower.config.hidden_size
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, bank.classes + 1 + 3))
    tower.to(device).train()
    head.to(device)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    warm = max(1, recipe.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / recipe.steps))),
    )

    def predict(pixels: Tensor) -> Tensor:
        hidden = tower(pixels, output_hidden_states=True).hidden_states[feature_layer][:, 1:]
        return head(hidden)

    log = []
    for step in range(min(recipe.steps, limit or recipe.steps)):
        batch = scenes.batch(recipe.batch)
        out = predict(batch["pixels"])
        named = F.cross_entropy(
            out[..., : bank.classes].flatten(0, 1), batch["label"].flatten(), label_smoothing=0.05
        )
        centred = F.binary_cross_entropy_with_logits(out[..., bank.classes], batch["centre"].flatten(1))
        off = (out[..., -3:].sigmoid() - batch["colour"].flatten(2).transpose(1, 2)).abs().mean(-1)
        coloured = (off * batch["covered"].flatten(1)).sum() / batch["covered"].sum()
        loss = named + centred + 2 * coloured
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step < 5 or step % 100 == 0 or step == recipe.steps - 1:
            log.append(
                {
                    "step": step,
                    "loss": loss.item(),
                    "name": named.item(),
                    "centre": centred.item(),
                    "colour": coloured.item(),
                }
            )
            if step % 500 == 0:
                print(
                    f"vision {step}/{recipe.steps} loss {loss.item():.3f} name {named.item():.3f}", flush=True
                )
    tower.eval()
    probe = {}
    for split in ("train", "test"):
        held = Scenes(SpriteBank(split, device), patch, recipe.seed + 1, augment=False)
        right = total = 0
        with torch.no_grad():
            for _ in range(4):
                batch = held.batch(256)
                named_as = predict(batch["pixels"])[..., : bank.classes].argmax(-1)
                label = batch["label"].flatten(1)
                right += ((named_as == label) & (label > 0)).sum().item()
                total += (label > 0).sum().item()
        probe[f"patches_named_{split}"] = right / total
    tower.to("cpu")
    return {"log": log, "probe": probe}
