"""Columns of a table that follow from others, or from what the runs cost; the figures compute theirs here too."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import Struct

from peftbench.analysis.outcomes import Z95, Estimate, average
from peftbench.errors import UserError
from peftbench.store import RECORD, Record, read_record
from peftbench.views import Summary

OWN = "own"
"""Stands for the column of the data set tuned on."""
ABSENT = "absent"
"""Why there is no number: the study has no run there. Other reasons are ``failed`` and ``missing``."""


class Number(Struct, frozen=True, kw_only=True):
    """An estimate, or why there is none."""

    estimate: Estimate | None = None
    reason: str = ""
    higher_is_better: bool = True


Costs = Callable[[str], float | None]
"""Gives what a row's runs cost by the name of the cost; None where no record says it."""


def summarise(
    summaries: Mapping[str, Summary],
    columns: Mapping[Any, Number],
    own: Any,
    base: Mapping[str, Number] | None,
    costs: Costs,
) -> dict[str, Number]:
    """All summaries of one row by name.

    ``columns`` are its numbers by data set, ``own`` is the data set tuned on (None: there is none), and ``base`` the
    summaries of the untuned base on the same data sets. Errors of means are those of independent test sets; of a
    change, of independent runs, which is too wide where both answer the same examples.
    """
    found: dict[str, Number] = {}
    for name, summary in summaries.items():
        if summary.cost:
            value = costs(summary.cost)
            found[name] = Number(reason=ABSENT) if value is None else _exact(value)
            continue
        parts = [
            found[item] if item in found else columns.get(own if item == OWN else item, Number(reason=ABSENT))
            for item in summary.over
        ]
        number = _combined(parts, summary.by)
        if summary.change:
            before = base.get(name) if base is not None else None
            number = _change(number, before)
        found[name] = number
    return found


def without_change(summaries: Mapping[str, Summary]) -> dict[str, Summary]:
    """The summaries of the untuned base, which others are compared with: no changes, no costs."""
    return {
        name: Summary(title=summary.title, over=summary.over, by=summary.by)
        for name, summary in summaries.items()
        if not summary.cost
    }


def _exact(value: float) -> Number:
    estimate = Estimate(value=value, stderr=0.0, low=value, high=value, n=0)
    return Number(estimate=estimate, higher_is_better=False)


def _combined(parts: Sequence[Number], by: str) -> Number:
    estimates = [part.estimate for part in parts if part.estimate is not None]
    if len(estimates) < len(parts) or not parts:
        reasons = {part.reason for part in parts if part.estimate is None}
        return Number(reason=next((r for r in ("failed", "missing") if r in reasons), ABSENT))
    higher = {part.higher_is_better for part in parts}
    if len(higher) > 1:
        return Number(reason="missing")  # higher is better in some, worse in others
    if len(estimates) == 1:
        return parts[0]
    estimate = average(estimates) if by == "mean" else harmonic(estimates)
    return Number(estimate=estimate, higher_is_better=higher.pop())


def harmonic(estimates: Sequence[Estimate]) -> Estimate:
    """Harmonic mean of independent numbers, with the error of the delta method; zero where one of them is not positive.

    ``d H / d x_i = H**2 / (n x_i**2)``.
    """
    n = sum(estimate.n for estimate in estimates)
    seeds = min(estimate.seeds for estimate in estimates)
    if any(estimate.value <= 0 for estimate in estimates):
        return Estimate(value=0.0, stderr=0.0, low=0.0, high=0.0, n=n, seeds=seeds)
    count = len(estimates)
    value = count / sum(1 / estimate.value for estimate in estimates)
    stderr = sum((value**2 / (count * e.value**2) * e.stderr) ** 2 for e in estimates) ** 0.5
    low, high = value - Z95 * stderr, value + Z95 * stderr
    return Estimate(value=value, stderr=stderr, low=low, high=high, n=n, seeds=seeds)


def _change(number: Number, before: Number | None) -> Number:
    if before is None:
        return Number(reason=ABSENT)
    if number.estimate is None or before.estimate is None:
        return number if number.estimate is None else before
    value = number.estimate.value - before.estimate.value
    stderr = (number.estimate.stderr**2 + before.estimate.stderr**2) ** 0.5
    estimate = Estimate(
        value=value,
        stderr=stderr,
        low=value - Z95 * stderr,
        high=value + Z95 * stderr,
        n=number.estimate.n,
        seeds=number.estimate.seeds,
    )
    return Number(estimate=estimate, higher_is_better=number.higher_is_better)


def costs_of(results: Path, scores: Sequence[str]) -> Costs:
    """What the runs cost whose scores lie in these folders (relative to the results): means over the runs."""
    folders = dict.fromkeys((results / path).parent.parent for path in scores)
    records = [record for folder in folders if (record := _record(folder)) is not None]

    def cost(name: str) -> float | None:
        values = [value for record in records if (value := READERS[name](record)) is not None]
        return fmean(values) if values else None

    return cost


def _record(folder: Path) -> Record | None:
    try:
        record = read_record(folder / RECORD) if (folder / RECORD).exists() else None
    except UserError:
        return None
    if record is None or "trainable" not in record.facts:
        return None
    # The best of several trials: its memory and time are those of the trial, not of choosing it.
    chosen = record.facts.get("chosen", {}).get("digest")
    trial = next(iter(folder.parent.glob(f"*-{chosen}")), None) if chosen else None
    return (_record(trial) if trial is not None else None) or record


def _seconds(record: Record) -> float | None:
    seconds = record.facts.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _memory(record: Record) -> float | None:
    peak = record.provenance.get("peak_gpu_memory") or record.provenance.get("peak_memory")
    return float(peak) / 2**30 if peak else None


READERS: dict[str, Callable[[Record], float | None]] = {
    "parameters": lambda record: float(sum(record.facts["trainable"].values())),
    "memory": _memory,
    "seconds": _seconds,
}
"""Cost -> how a training record says it."""
UNITS = {"parameters": "", "memory": "GiB", "seconds": "s"}


def cost_text(name: str, value: float) -> str:
    """A cost as tables and figures print it: 1.23 M, 0.61, 12.3."""
    if name == "parameters":
        for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
        return f"{value:.0f}"
    return f"{value:.3g}"


def cost_with_unit(name: str, value: float) -> str:
    """The same with its unit, where it has one: 0.61 GiB."""
    return f"{cost_text(name, value)} {UNITS[name]}".strip()
