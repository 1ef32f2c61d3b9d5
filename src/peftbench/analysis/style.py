"""Names and colours that the table, the figure and the page share."""

import importlib
from typing import Any

UNTUNED = "base"
"""The method of cells that hold the base model as it is, the reference of all others."""
UNTUNED_TITLE = "untuned base"
AXIS_TITLES = {"train_size": "Training examples", "dataset": "Data set"}

INK, MUTED, RULE, SURFACE = "#1c2024", "#646b75", "#dfe2e7", "#ffffff"
"""Text, lesser text, lines and background of a figure. The page replaces them by its own, light or dark."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a5a2b", "#5b5b5b")
"""Colours of methods after Okabe and Ito: told apart with every common kind of colour blindness."""
SERIES_DARK = ("#4aa8e0", "#f28442", "#2cc399", "#e09bc2", "#f0b93a", "#8ccff5", "#c79263", "#a8a8a8")
"""The same on a dark background."""
DASHES = ("", "5 3", "1.5 2.5", "8 3 1.5 3")
"""Line styles of a method's variants, as SVG has them."""


def method_title(name: str) -> str:
    """What people call a method: ``TITLE`` of its module, else its name."""
    return UNTUNED_TITLE if name == UNTUNED else str(getattr(_module(name), "TITLE", name))


def method_summary(name: str) -> str:
    """What a method is, in the first paragraph of its module's docstring; "" where there is none."""
    text = getattr(_module(name), "__doc__", None) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _module(name: str) -> Any:
    """The method's module; None for a method of results that this version does not have any more."""
    try:
        return importlib.import_module(f"peftbench.methods.{name}")
    except ModuleNotFoundError:
        return None


def axis_title(axis: str) -> str:
    """Heading for an axis."""
    return AXIS_TITLES.get(axis) or (axis if "." in axis else axis.replace("_", " ").capitalize())


def variant_title(values: dict[str, Any]) -> str:
    """What tells one variant of a method from another: "connector tuned, rank 8"."""
    words = {"dataset": "tuned on"}
    return ", ".join(f"{words.get(axis, axis.replace('_', ' '))} {value}" for axis, value in values.items())


def colour_index(position: int) -> int:
    """Which of the colours the method at this position has; they come around again after the last."""
    return position % len(SERIES)
