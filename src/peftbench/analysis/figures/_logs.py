"""Losses of the runs behind a table: read from their logs, and which epochs are marked."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from peftbench.analysis.dots import Row
from peftbench.errors import UserError
from peftbench.evaluation.epochs import epoch_of
from peftbench.spec import Epoch

if TYPE_CHECKING:
    import polars as pl

OVERFITTING: tuple[Epoch, ...] = ("best", "near1", "near2", "near3", "near4")
"""The epochs that are marked (paper, section 5.5)."""
Points = list[tuple[float, float]]


class Log(Struct, frozen=True, kw_only=True):
    """One run: training loss at each step, evaluation loss at the end of each epoch. Time is in epochs."""

    train: Points
    evaluation: dict[int, float]


class NoLog(Struct, frozen=True):
    """Why a run has no curve."""

    reason: str


def run_folder(row: Row, results: Path) -> Path:
    """The folder of the run behind a row of the long table."""
    return (results / str(row["scores"])).parent.parent


def read_log(run: Path) -> Log | NoLog:
    """The losses of a run; without an evaluation where the study measures none. Never raises."""
    import polars as pl

    if not (run / "log.csv").exists():
        return NoLog("log missing")
    try:
        steps = _columns(run / "log.csv", ["step", "epoch", "loss"])
        evaluation = _columns(run / "eval.csv", ["epoch", "loss"]) if (run / "eval.csv").exists() else None
        if steps.is_empty():
            return NoLog("log empty")
        scale = float(steps["epoch"].max()) / float(steps["step"].max())  # type: ignore[arg-type]
        train = _finite(zip(steps["step"] * scale, steps["loss"], strict=True))
        measured = (
            _finite(zip(evaluation["epoch"], evaluation["loss"], strict=True))
            if evaluation is not None
            else []
        )
    except (OSError, pl.exceptions.PolarsError, ValueError, TypeError, ZeroDivisionError):
        return NoLog("log damaged")
    if not train:
        return NoLog("no finite loss")
    return Log(train=train, evaluation={int(epoch): loss for epoch, loss in measured})


def _columns(path: Path, names: Sequence[str]) -> "pl.DataFrame":
    import polars as pl

    return pl.read_csv(path, columns=list(names)).cast(pl.Float64)


def _finite(points: object) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]  # type: ignore[attr-defined]


def overfitting_epochs(run: Path, log: Log) -> list[int]:
    """The epoch of the lowest evaluation loss and the four nearest to it, as tables that ask for them take them.

    Fewer where the run is shorter; none without an evaluation.
    """
    found = []
    for name in OVERFITTING:
        try:
            epoch = epoch_of(run, name)
        except UserError:
            break
        if epoch is not None and epoch in log.evaluation:
            found.append(epoch)
    return found


def thinned(points: Points, most: int) -> Points:
    """At most ``most`` points: means of stretches of equal length."""
    if len(points) <= most:
        return points
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    parts = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def smoothed(points: Points) -> Points:
    """A moving mean over a fortieth of the run, at least five points; at the ends over what there is."""
    half = max(2, len(points) // 80)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for i, (x, _) in enumerate(points):
        a, b = max(0, i - half), min(len(points), i + half + 1)
        found.append((x, (sums[b] - sums[a]) / (b - a)))
    return found
