"""How a judge's texts become ratings: one module per scale, apart from the metrics that average them.

A judge's replies are paid for, so what reads them must not change when a metric's further figures do.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from peftbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from peftbench.data.example import Example


class Reading(NamedTuple):
    """What a reply says."""

    rating: int | None
    """None where the reply has no single rating on the scale."""
    problem: str = ""
    """Why there is no rating."""


class Scale(Protocol):
    """The interface of a scale's module. Its prompt is the text file of the same name beside it."""

    def read(self, reply: str) -> Reading:
        """The rating of a reply."""
        ...

    def hallucinated(self, rating: int) -> bool:
        """Whether a rating says that the answer hallucinates."""
        ...

    def types(self, examples: Sequence[Example]) -> list[str]:
        """The type of each question of a whole test split, "" where it has none."""
        ...


def scale_names() -> list[str]:
    """The scales that exist."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def load_scale(name: str) -> Scale:
    """The scale of that name, or a UserError that names the nearest one."""
    names = scale_names()
    if name not in names:
        raise UserError(f"unknown scale of a judge {name!r}{did_you_mean(name, names)}")
    return cast(Scale, importlib.import_module(f"{__name__}.{name}"))
