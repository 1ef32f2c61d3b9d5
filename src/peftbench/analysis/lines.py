"""What the page reads besides the scores: the folders of each run, their records, answers and logs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.outcomes import VARIANT_AXES, Outcome, coordinates, varying_axes
from peftbench.analysis.style import UNTUNED, variant_title
from peftbench.errors import UserError
from peftbench.store import RECORD, Record, read_record
from peftbench.views import TabulateSpec

if TYPE_CHECKING:
    import polars as pl


class Line(Struct, frozen=True, kw_only=True):
    """One run as the page shows it: who it is, and where its files are."""

    outcome: Outcome
    method: str
    variant: str
    """What tells it from the method's other runs: "connector tuned"; "" for the untuned model."""
    position: int
    """Of the method in the study: its colour."""
    kind: int
    """Of the variant in the study: its line style."""
    scores: Path
    predictions: Path
    run: Path

    @property
    def untuned(self) -> bool:
        """Whether this is the base model as it is."""
        return self.method == UNTUNED


def read_lines(spec: TabulateSpec, outcomes: list[Outcome], results: Path) -> list[Line]:
    """One line per cell in the order of the study. Seeds are not variants: see ``first_seeds``."""
    points = [coordinates(outcome.cell) for outcome in outcomes]
    tuned = [point for point in points if point["method"] != UNTUNED]
    further = dict.fromkeys(axis for outcome in outcomes for axis in outcome.cell.axes)
    axes = varying_axes(tuned, [*VARIANT_AXES, *further])
    methods = list(dict.fromkeys(point["method"] for point in tuned))
    labels = {dataset.name: dataset.label for dataset in spec.datasets}
    variants: list[str] = []
    lines = []
    for outcome, point in zip(outcomes, points, strict=True):
        untuned = point["method"] == UNTUNED
        values = {axis: point[axis] for axis in axes if axis in point}
        if "dataset" in values:
            values["dataset"] = labels[values["dataset"]]
        variant = "" if untuned else variant_title(values)
        if not untuned and variant not in variants:
            variants.append(variant)
        scores = results / outcome.cell.scores
        lines.append(
            Line(
                outcome=outcome,
                method=point["method"],
                variant=variant,
                position=0 if untuned else methods.index(point["method"]),
                kind=0 if untuned else variants.index(variant),
                scores=scores,
                predictions=scores.parent,
                run=scores.parent.parent,
            )
        )
    return lines


def first_seeds(lines: list[Line]) -> list[Line]:
    """Of runs that differ in their seed only, the first that has a result, else the first."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        cell = line.outcome.cell
        groups.setdefault((cell.model, cell.target, line.method, line.variant), []).append(line)
    return [
        next((line for line in group if line.outcome.status == "ok"), group[0]) for group in groups.values()
    ]


def record_in(folder: Path) -> Record | None:
    """The record of a folder; None where there is none or it is damaged (the table names those)."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return read_record(path)
    except UserError:
        return None


def read_columns(path: Path, columns: list[str]) -> "pl.DataFrame":
    """Columns of a parquet or CSV file; ``UserError`` where it is missing, damaged or lacks one."""
    import polars as pl

    try:
        if path.suffix == ".csv":
            return pl.read_csv(path).select(columns)
        return pl.read_parquet(path, columns=columns)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}): delete its folder and run snakemake again"
        ) from None
