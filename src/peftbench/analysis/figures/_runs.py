"""What the kinds read from the long table: methods, variants, panels, means, and what is missing."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.dots import Row, distinct, row_estimate, variant_of
from peftbench.analysis.outcomes import (
    COORDINATES,
    VARIANT_AXES,
    Estimate,
    average,
    over_seeds,
    varying_axes,
)
from peftbench.analysis.style import SERIES, UNTUNED, colour_index
from peftbench.analysis.table import MEASURED

if TYPE_CHECKING:
    import polars as pl


class Gap(Struct, frozen=True):
    """A number that there is not, and why."""

    reason: str


Number = Estimate | Gap


class Study:
    """The rows of a long table, with what tells them apart."""

    def __init__(self, frame: "pl.DataFrame", apart: Sequence[str] = ()) -> None:
        """``apart``: axes that the figure itself shows, so that they tell no variants from each other."""
        self.rows: list[Row] = frame.to_dicts()
        self.tuned = [row for row in self.rows if row["method"] != UNTUNED]
        self.untuned = [row for row in self.rows if row["method"] == UNTUNED]
        self.further = [name for name in frame.columns if name not in COORDINATES and name not in MEASURED]
        axes = varying_axes(self.tuned, [*VARIANT_AXES, *self.further])
        self.axes = [axis for axis in axes if axis not in apart]
        for row in self.rows:
            row["variant"] = variant_of(row, self.axes)
        self.methods = distinct(row["method"] for row in self.tuned)
        self.models = distinct(row["model"] for row in self.tuned)
        self.variants = distinct(row["variant"] for row in self.tuned)

    def colour(self, method: str) -> str:
        """Colour of a method: by its place in the study, as everywhere."""
        return SERIES[colour_index(self.methods.index(method))]

    def model_title(self, model: str) -> str:
        """What a model is called."""
        return next(str(row["model_title"]) for row in self.rows if row["model"] == model)

    def label(self, dataset: str) -> str:
        """What a data set is called."""
        for row in self.rows:
            for name, label in ((row["target"], row["dataset_label"]), (row["dataset"], row.get("tuned_on"))):
                if name == dataset and label:
                    return str(label)
        return dataset

    @property
    def one_direction(self) -> bool:
        """Whether the scores of all data sets may be averaged: higher is better for all, or for none."""
        known = {row["higher_is_better"] for row in self.rows if row["status"] == "ok"}
        return len(known) <= 1

    @property
    def gaps(self) -> list[str]:
        """A note on the runs that have no score; none where all have one."""
        return gap_notes([(row["status"], row["scores"]) for row in self.rows])


def gap_notes(runs: Iterable[tuple[str, str]]) -> list[str]:
    """ "2 of 12 runs missing" for pairs of status and folder, each folder once; nothing where all are ok."""
    states = {folder: status for status, folder in runs}
    counts = {status: list(states.values()).count(status) for status in ("failed", "missing")}
    found = [f"{count} {status}" for status, count in counts.items() if count]
    if not found:
        return []
    found[0] = found[0].replace(" ", f" of {len(states)} runs ", 1)
    return [", ".join(found) + "."]


def merged(rows: Sequence[Row], column: str = "value") -> Number:
    """One number for rows that differ in their seed only: all of them have to be there.

    ``column``: ``value`` with its error, or ``published``, which has none.
    """
    if column == "published":
        values = [row["published"] for row in rows if row["published"] is not None]
        if not values or len(values) < len(rows):
            return Gap("not published")
        return Estimate(value=sum(values) / len(values), stderr=0.0, low=min(values), high=max(values), n=0)
    bad = sorted({row["status"] for row in rows} - {"ok"})
    estimates = [found for row in rows if (found := row_estimate(row))]
    if bad or not estimates or len(estimates) < len(rows):
        return Gap(bad[0] if bad else "missing")
    return over_seeds(estimates)


def mean_of(numbers: Sequence[Number], combine: Callable[[Sequence[Estimate]], Estimate] = average) -> Number:
    """Their mean where all are there, else why not: "failed", "2 of 5 missing"."""
    bad = [number for number in numbers if isinstance(number, Gap)]
    there = [number for number in numbers if isinstance(number, Estimate)]
    if not numbers:
        return Gap("missing")
    if bad:
        reasons = sorted({gap.reason for gap in bad})
        count = f"{len(bad)} of {len(numbers)} " if len(numbers) > 1 else ""
        return Gap(count + " or ".join(reasons))
    return combine(there)


def by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows in groups by some of their columns, in order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def mean_over_targets(rows: Sequence[Row], targets: Sequence[str], column: str = "value") -> Number:
    """Unweighted mean over data sets of one model and setting, seeds merged first; all have to be there."""
    groups = by(rows, "target")
    numbers = [merged(groups[(name,)], column) if (name,) in groups else Gap("not run") for name in targets]
    return mean_of(numbers)


def published_only(number: Number) -> float | None:
    """The value of a published number; None where there is none."""
    return number.value if isinstance(number, Estimate) else None


def setting_key(value: Any) -> tuple[int, float, str]:
    """Sorts the values of an axis: numbers by size, then words."""
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)
