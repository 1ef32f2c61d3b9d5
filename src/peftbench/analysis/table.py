"""The table of a study: a long CSV for machines, and Markdown, LaTeX and HTML for people."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.analysis.grid import ReadItems, annotators, build_grid
from peftbench.analysis.outcomes import COORDINATES, Outcome, coordinates, read_outcomes
from peftbench.analysis.render import standalone, to_latex, to_markdown
from peftbench.analysis.statistics.items import Items, read_items
from peftbench.analysis.statistics.result import NotComputable
from peftbench.canonical import file_sha256
from peftbench.errors import UserError
from peftbench.store import atomic_text, atomic_write
from peftbench.views import TabulateSpec

if TYPE_CHECKING:
    import polars as pl

MEASURED: dict[str, Any] = {
    "model_title": str,
    "dataset_title": str,
    "dataset_label": str,
    "tuned_on": str,
    "seen": bool,
    "metric": str,
    "higher_is_better": bool,
    "value": float,
    "stderr": float,
    "low": float,
    "high": float,
    "n": int,
    "published": float,
    "difference": float,
    "status": str,
    "reason": str,
    "digest": str,
    "scores": str,
    "source": str,
    "people": float,
    "people_low": float,
    "people_high": float,
    "people_n": int,
    "people_source": str,
}
"""Columns of the long table after the coordinates, with their types.

``difference``: ours minus published. ``tuned_on``: label of the data set tuned on (``dataset_label``: of that tested
on). ``source``: the metric behind ``value``. ``people``: rate (0-100) that people counted in the same answers, and who
they were.
"""


def items_of(results: Path) -> ReadItems:
    """Reads the scores per test item of an outcome from the results folder."""

    def read(outcome: Outcome) -> Items | NotComputable:
        if outcome.estimate is None:
            return NotComputable(outcome.reason)
        return read_items(results / outcome.cell.scores, results, value=outcome.estimate.value)

    return read


def long_frame(spec: TabulateSpec, outcomes: list[Outcome]) -> "pl.DataFrame":
    """One row per cell, in the order of the spec: coordinates, further axes, then ``MEASURED``."""
    import polars as pl

    models = {model.name: model for model in spec.models}
    datasets = {dataset.name: dataset for dataset in spec.datasets}
    axes = list(dict.fromkeys(axis for cell in spec.cells for axis in cell.axes))
    axes += ["measure"] if spec.measures else []
    rows = []
    for outcome in outcomes:
        cell, estimate = outcome.cell, outcome.estimate
        point = coordinates(cell)
        row: dict[str, Any] = {name: _text(point[name]) for name in (*COORDINATES, *axes) if name in point}
        row["seed"] = cell.seed
        for axis in axes:
            row.setdefault(axis, None)
        row["model_title"] = models[cell.model].title
        dataset = datasets[cell.target]
        row |= {"dataset_title": dataset.title, "dataset_label": dataset.label, "seen": dataset.seen}
        row["tuned_on"] = datasets[cell.dataset].label
        row |= {"metric": spec.metric or dataset.metric, "higher_is_better": outcome.higher_is_better}
        for name in ("value", "stderr", "low", "high", "n"):
            row[name] = getattr(estimate, name, None)
        row["published"] = published = outcome.published
        row["difference"] = estimate.value - published if estimate and published is not None else None
        row |= {"status": outcome.status, "reason": outcome.reason, "digest": outcome.digest}
        row["scores"] = cell.scores
        row["source"] = f"automatic ({spec.metric or dataset.metric})"
        row |= _people(spec, outcome)
        rows.append(row)
    clash = [axis for axis in axes if axis in MEASURED]
    if clash:
        raise UserError(
            f"config/studies/{spec.study}.yaml: axes.{clash[0]}: the table has a column of that name"
        )
    kinds = {str: pl.String, bool: pl.Boolean, float: pl.Float64, int: pl.Int64}
    schema: dict[str, Any] = {name: pl.Int64 if name == "seed" else pl.String for name in COORDINATES}
    schema |= dict.fromkeys(axes, pl.String)
    schema |= {name: kinds[kind] for name, kind in MEASURED.items()}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _people(spec: TabulateSpec, outcome: Outcome) -> dict[str, Any]:
    """The columns on what people counted."""
    counted, people = outcome.people, spec.people
    if counted is None or people is None:
        return dict.fromkeys(("people", "people_low", "people_high", "people_n", "people_source"))
    return {
        "people": 100 * counted.hallucinated / counted.n,
        "people_low": counted.low,
        "people_high": counted.high,
        "people_n": counted.n,
        "people_source": f"{annotators(people)}; {people.agreement}",
    }


def _text(value: Any) -> str | None:
    """A coordinate as text: an axis may hold numbers for one method and words for another."""
    return None if value is None else str(value)


def read_long(path: Path) -> "pl.DataFrame":
    """The long table that ``tabulate_study`` wrote; ``UserError`` where it is missing or damaged."""
    import polars as pl

    kinds = {str: pl.String, bool: pl.Boolean, float: pl.Float64, int: pl.Int64}
    schema: dict[str, Any] = {name: kinds[kind] for name, kind in MEASURED.items()} | {"seed": pl.Int64}
    try:
        header = path.open(encoding="utf-8").readline().rstrip("\n").split(",")
        schema |= {name: pl.String for name in header if name not in schema}
        missing = {*COORDINATES, *MEASURED} - set(header)
        if missing:
            raise UserError(f"{path}: column {min(missing)!r} is missing: delete it and run again")
        return pl.read_csv(path, schema_overrides=schema)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: run snakemake to make it") from None
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({line}): delete it and run again") from None


def tabulate_study(spec: TabulateSpec, results: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``<study>.csv``, ``.md``, ``.html`` and ``.tex`` to ``out_dir``; return facts for the marker.

    Runs that failed or are missing are rows and cells that say so. Raises ``UserError`` where the spec puts
    runs that differ in more than their seed into one place, or where published values do not fit.
    """
    outcomes = read_outcomes(spec, results)
    frame = long_frame(spec, outcomes)
    grid = build_grid(spec, outcomes, items_of(results), results)
    files = {kind: out_dir / f"{spec.study}.{kind}" for kind in ("csv", "md", "html", "tex")}
    atomic_write(files["csv"], frame.write_csv)
    atomic_text(files["md"], to_markdown(grid))
    atomic_text(files["html"], standalone(grid))
    atomic_text(files["tex"], to_latex(grid))
    return {
        "cells": {
            status: sum(o.status == status for o in outcomes) for status in ("ok", "failed", "missing")
        },
        "outputs": {path.name: file_sha256(path) for path in files.values()},
    }
