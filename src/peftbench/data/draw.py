"""Draw examples of an embedded data set: each from its own random generator, in any order, on any machine."""

from __future__ import annotations

import hashlib
import importlib
from random import Random
from typing import TYPE_CHECKING

import msgspec

from peftbench.data.example import Example
from peftbench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from peftbench.data.embedded.wording import Draft


def generator_module(generator: str) -> str:
    """Return the module that draws this embedded data set."""
    return f"peftbench.data.embedded.{generator}"


def load_generator(generator: str) -> Callable[[Random, str, int], Draft]:
    """Return the drawing function of an embedded data set: from a random generator, the artists and the index.

    A module has ``draft(rng, split)``, or ``draft_in_turn(rng, split, index)`` where the index decides what is asked.
    Raises ``UserError`` when there is no such generator.
    """
    try:
        module = importlib.import_module(generator_module(generator))
        in_turn: Callable[[Random, str, int], Draft] | None = getattr(module, "draft_in_turn", None)
        if in_turn is not None:
            return in_turn
        alone: Callable[[Random, str], Draft] = module.draft
        return lambda rng, split, index: alone(rng, split)
    except (ModuleNotFoundError, AttributeError):
        raise UserError(
            f"no embedded data set is drawn by {generator!r}: see src/peftbench/data/embedded/"
        ) from None


def draw(
    generator: str, split: str, index: int, seed: int, artists: str | None = None
) -> tuple[Example, bytes]:
    """Draw example ``index`` of a split; return it and its picture as PNG (empty where there is none).

    ``artists`` is the group of drawing styles; by default that of the split: "test" has its own, all others share
    the training artists.
    """
    key = hashlib.sha256(f"{seed}/{generator}/{split}/{index}".encode()).digest()
    made = load_generator(generator)(
        Random(int.from_bytes(key, "big")), artists or ("test" if split == "test" else "train"), index
    )
    png = made.scene.png() if made.scene is not None else b""
    return (
        Example(
            id=f"{generator}-{split}-{index:06d}",
            image=hashlib.sha256(png).hexdigest() if png else "",
            question=made.question,
            choices=made.choices,
            answer_index=made.answer_index,
            answers=made.answers,
            target=made.target,
            question_type=made.question_type,
            answer_type=made.answer_type,
            split=split,
            source=msgspec.json.encode(made.facts, order="sorted").decode(),
        ),
        png,
    )
