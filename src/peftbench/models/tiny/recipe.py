"""The recipe of the tiny base model, as types: sizes and the settings of both phases of its training."""

from __future__ import annotations

from typing import Literal

import msgspec


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Widths and depths; pixels for the image. The tower's last layer is unused, as in LLaVA-1.5 (layer -2)."""

    image: int = 96
    patch: int = 16
    vision_hidden: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    hidden: int = 128
    intermediate: int = 352
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1536


class VisionRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the tower's pre-training."""

    steps: int = 1700
    batch: int = 192
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.05
    seed: int = 11


class ExposureRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the exposure; ``mix`` counts examples per generator."""

    mix: dict[str, int] = msgspec.field(
        default_factory=lambda: {
            "alignment": 8000,
            "vqav2": 9000,
            "okvqa": 5000,
            "ocrvqa": 6000,
            "aokvqa": 7000,
            "text": 7000,
        }
    )
    steps: int = 1500
    batch: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    seed: int = 13


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``source:`` block of a tiny model that the workflow trains itself."""

    kind: Literal["tiny"]
    weights: Literal["train"]
    sizes: Sizes = Sizes()
    vision: VisionRecipe = VisionRecipe()
    exposure: ExposureRecipe = ExposureRecipe()
    seed: int = 5
