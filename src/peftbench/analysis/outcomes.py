"""What came of each run of a study: its score, or why there is none."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

import msgspec
from msgspec import Struct

from peftbench.analysis.published import published_value
from peftbench.analysis.style import UNTUNED, variant_title
from peftbench.errors import UserError
from peftbench.failures import result_or_failure
from peftbench.store import FAILED, Record
from peftbench.views import Cell, People, PeopleCount, TabulateSpec

Z95 = 1.959963984540054
COORDINATES = ("model", "dataset", "target", "method", "connector", "location", "train_size", "seed")
Status = Literal["ok", "failed", "missing"]


class Estimate(Struct, frozen=True, kw_only=True):
    """A score with its uncertainty, on the metric's own scale."""

    value: float
    stderr: float
    low: float
    high: float
    """Ends of the 95 % interval."""
    n: int
    """Test examples."""
    seeds: int = 1
    """Runs that it is the mean of."""


class Outcome(Struct, frozen=True, kw_only=True):
    """One cell of a study and what its files say."""

    cell: Cell
    status: Status
    reason: str = ""
    """Why there is no estimate; one line."""
    estimate: Estimate | None = None
    higher_is_better: bool = True
    published: float | None = None
    digest: str = ""
    """Of the scores."""
    people: PeopleCount | None = None
    """What people counted in the same answers."""


def coordinates(cell: Cell) -> dict[str, Any]:
    """All coordinates of a cell by name.

    Those that every run has, the study's further axes, and what a table may be laid out by besides: ``setting``
    (the further axes in words) and ``measure``.
    """
    derived = {"setting": variant_title(cell.axes), "measure": cell.measure}
    return {name: getattr(cell, name) for name in COORDINATES} | dict(cell.axes) | derived


def read_outcomes(spec: TabulateSpec, results: Path) -> list[Outcome]:
    """What came of each cell, in the order of the spec. A run without scores is said so, never left out."""
    datasets = {dataset.name: dataset.stands_for for dataset in spec.datasets}
    models = {model.name: model.stands_for or model.name for model in spec.models}
    stands_for = {"dataset": datasets, "target": datasets, "model": models}
    records: dict[Path, Record | None] = {}
    found = []
    for cell in spec.cells:
        published = published_value(spec, coordinates(cell), stands_for)
        outcome = _read(cell, results, published, spec.measures.get(cell.measure, ""), records)
        counted = people_of(spec.people, cell)
        found.append(msgspec.structs.replace(outcome, people=counted) if counted else outcome)
    return found


def people_of(people: People | None, cell: Cell) -> PeopleCount | None:
    """What people counted in the very answers that a cell's scores are of."""
    answers = Path(cell.scores).parent.name.rpartition("-")[2]
    return next((one for one in people.counts if one.answers == answers), None) if people else None


def _read(
    cell: Cell,
    results: Path,
    published: float | None,
    measure: str,
    known: dict[Path, Record | None],
) -> Outcome:
    scores = results / cell.scores
    stages = (("training", scores.parent.parent), ("prediction", scores.parent), ("scoring", scores))
    try:
        for _, folder in stages:
            if folder not in known:  # cells share runs, and each measure of a run is a cell
                known[folder] = result_or_failure(folder, results)
        records = {stage: known[folder] for stage, folder in stages}
    except UserError as error:
        return Outcome(cell=cell, status="missing", reason=str(error), published=published)
    for stage, record in records.items():
        if record is not None and record.facts.get(FAILED):
            reason = f"{stage} failed: {_line(record.facts[FAILED])}"
            return Outcome(cell=cell, status="failed", reason=reason, published=published)
    record = records["scoring"]
    if record is None:
        gone = [stage for stage in records if records[stage] is None]
        if cell.method == UNTUNED:
            gone.remove("training")  # the base model's folder holds predictions only
        reason = f"no result of {gone[0]}"
        return Outcome(cell=cell, status="missing", reason=reason, published=published)
    facts = record.facts
    measured = _measured(facts, measure)
    estimate = _estimate(measured)
    if estimate is None:
        what = f"no number {measure}" if measure else "no finite score with its error"
        reason = f"scoring failed: the record holds {what}"
        return Outcome(cell=cell, status="failed", reason=reason, published=published, digest=record.digest)
    return Outcome(
        cell=cell,
        status="ok",
        estimate=estimate,
        higher_is_better=bool(measured.get("higher_is_better", facts.get("higher_is_better", True))),
        published=published,
        digest=record.digest,
    )


def _measured(facts: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The part of a record's facts that holds a measure: the whole, or what lies at the path.

    There lies a mapping with value, stderr and n, or a plain number, whose error is not known.
    """
    part: Any = facts
    for key in path.split(".") if path and path != "value" else ():
        part = part.get(key) if isinstance(part, Mapping) else None
    if _finite(part):
        return {"value": part, "stderr": 0.0, "n": facts.get("n", 0)}
    return part if isinstance(part, Mapping) else {}


def _estimate(facts: Mapping[str, Any]) -> Estimate | None:
    value, stderr, interval = facts.get("value"), facts.get("stderr"), facts.get("interval")
    n = facts.get("n", 0)
    if not _finite(value) or not _finite(stderr) or not _finite(n) or stderr < 0 or n < 0:
        return None
    if not (isinstance(interval, Sequence) and len(interval) == 2 and all(map(_finite, interval))):
        interval = [value - Z95 * stderr, value + Z95 * stderr]
    low, high = float(interval[0]), float(interval[1])
    return Estimate(value=float(value), stderr=float(stderr), low=low, high=high, n=int(n))


def _finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _line(text: Any) -> str:
    return " ".join(str(text).split())


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate for runs that differ in their seed only.

    The runs answer the same test examples, so the sampling error of the examples does not shrink with more
    seeds, while the spread between seeds does: ``stderr**2 = mean(stderr_i**2) + var(value_i) / seeds``.
    """
    if len(estimates) == 1:
        return estimates[0]
    value = statistics.fmean(estimate.value for estimate in estimates)
    items = statistics.fmean(estimate.stderr**2 for estimate in estimates)
    spread = statistics.variance(estimate.value for estimate in estimates)
    stderr = math.sqrt(items + spread / len(estimates))
    return Estimate(
        value=value,
        stderr=stderr,
        low=value - Z95 * stderr,
        high=value + Z95 * stderr,
        n=min(estimate.n for estimate in estimates),
        seeds=sum(estimate.seeds for estimate in estimates),
    )


def average(estimates: Sequence[Estimate], same_items: bool = False) -> Estimate:
    """Unweighted mean over data sets, whose test examples are independent: errors add in squares.

    ``same_items``: of numbers about the same test examples (epochs), whose errors go together: the error is the mean
    of theirs, the most that it can be.
    """
    value = statistics.fmean(estimate.value for estimate in estimates)
    stderr = math.sqrt(sum(estimate.stderr**2 for estimate in estimates)) / len(estimates)
    if same_items:
        stderr = statistics.fmean(estimate.stderr for estimate in estimates)
    return Estimate(
        value=value,
        stderr=stderr,
        low=value - Z95 * stderr,
        high=value + Z95 * stderr,
        n=min(e.n for e in estimates) if same_items else sum(e.n for e in estimates),
        seeds=min(estimate.seeds for estimate in estimates),
    )


VARIANT_AXES = ("dataset", "connector", "location", "train_size")
"""Axes of every run that may tell variants of a method apart; what it was tuned on does where that is not what it is
tested on."""


def varying_axes(rows: Iterable[Mapping[str, Any]], axes: Sequence[str]) -> list[str]:
    """Those of ``axes`` that tell apart runs of one model and method tested on one data set.

    An axis that only follows from the method (its default location) does not.
    """
    seen: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    varying: set[str] = set()
    for row in rows:
        key = (row["model"], row["target"], row["method"])
        first = seen.setdefault(key, row)
        varying.update(axis for axis in axes if row.get(axis) != first.get(axis))
    return [axis for axis in axes if axis in varying]
