"""The paper's Figure 4: how steady the methods are over the four epochs at which they begin to overfit.

For each pair of source and target (tuned on one data set, tested on the other) and each method, with ``s_e`` the
score at epoch e of the study's n epochs (seeds merged) and ``m`` its mean over these epochs:

- left, what the paper draws: the deviation ``m - M`` in points, where ``M`` is the mean of ``m`` over the methods.
  The paper says "we calculate the mean of four PEFT methods on each source-target domain"; its bars reach from
  about -15 to 10, as Table 4 gives in points (-14.7 to 9.7; relative to M it would be -29 to 21 %). A thin line
  shows where the single epochs lie.
- right, fluctuation in the narrow sense: ``100 * mean_e |s_e - m| / m``, in percent of the method's own mean.

A method with a run that has no score has no mark; a pair is drawn on the left only where all methods have theirs.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.dots import Row, distinct
from peftbench.analysis.figures._runs import Gap, Study, by, merged
from peftbench.analysis.figures._sheet import WHITE_BOX, Context, Sheet, empty, heading, marker
from peftbench.analysis.outcomes import Estimate
from peftbench.analysis.style import INK, MUTED, RULE, SURFACE, method_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOT_HEIGHT = 0.175
BESIDE = 0.36
"""Of the published value from its row, in rows."""
WIDTH = 2.75
EPOCH = "epoch"


class Scores(Struct, frozen=True, kw_only=True):
    """One method's scores on one pair, epoch by epoch; or why they are not all there."""

    values: list[float]
    reason: str = ""

    @property
    def mean(self) -> float:
        """Over the epochs."""
        return statistics.fmean(self.values)

    @property
    def fluctuation(self) -> float | None:
        """Mean distance from the mean in percent of it; None where the mean is 0."""
        if not self.mean:
            return None
        return 100 * statistics.fmean(abs(value - self.mean) for value in self.values) / self.mean


class Pair(Struct, frozen=True, kw_only=True):
    """One source and target of one model and variant."""

    model: str
    variant: str
    source: str
    target: str
    scores: dict[str, Scores]
    """By method."""
    published: dict[str, Scores]


def pairs(study: Study) -> list[Pair]:
    """All pairs; ``study`` was read with ``epoch`` and ``dataset`` apart."""
    epochs = distinct(row[EPOCH] for row in study.tuned)
    return [
        Pair(
            model=model,
            variant=variant,
            source=source,
            target=target,
            scores={m: _scores(rows, m, epochs, "value") for m in study.methods},
            published={m: _scores(rows, m, epochs, "published") for m in study.methods},
        )
        for (model, variant, source, target), rows in by(
            study.tuned, "model", "variant", "dataset", "target"
        ).items()
    ]


def _scores(rows: Sequence[Row], method: str, epochs: Sequence[Any], column: str) -> Scores:
    groups = by([row for row in rows if row["method"] == method], EPOCH)
    numbers = [merged(groups[(e,)], column) if (e,) in groups else Gap("not run") for e in epochs]
    for number in numbers:
        if isinstance(number, Gap):
            return Scores(values=[], reason=number.reason)
    return Scores(values=[number.value for number in numbers if isinstance(number, Estimate)])


def deviations(scores: Mapping[str, Scores]) -> dict[str, list[float]]:
    """Method -> its scores at the epochs minus the mean over methods and epochs; empty where a method has none."""
    if not scores or any(not found.values for found in scores.values()):
        return {}
    mean = statistics.fmean(found.mean for found in scores.values())
    return {method: [value - mean for value in found.values] for method, found in scores.items()}


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table."""
    study = Study(frame, apart=(EPOCH, "dataset"))
    epochs = distinct(row[EPOCH] for row in study.tuned) if EPOCH in frame.columns else []
    if len(epochs) < 2:
        return empty(context, "the study tests the weights of one epoch only", study.gaps)
    found = pairs(study)
    if not any(scores.values for pair in found for scores in pair.scores.values()):
        return empty(context, "no method has a score at all epochs of any pair", study.gaps)
    names = [_name(study, pair) for pair in found]
    step = len(study.methods) + 0.9
    body = max(1.0, len(found) * step * DOT_HEIGHT)
    left = min(3.2, 0.35 + 0.072 * max(len(line) for name in names for line in name.split("\n")))
    sheet = Sheet(
        context.title,
        left + 2 * WIDTH + 0.5,
        body + 0.75,
        _legend(study, found),
        [
            f"Over the {len(epochs)} epochs {', '.join(map(str, epochs))}. Left: a thin line spans the single epochs.",
            *study.gaps,
        ],
    )
    axes = [sheet.axes(left + k * (WIDTH + 0.3), 0.45, WIDTH, body) for k in range(2)]
    _rows(axes[0], names, step)
    _rows(axes[1], [""] * len(names), step)
    heading(axes[0], "Distance from the mean of the methods", "points of score, mean over the epochs")
    heading(axes[1], "Fluctuation over the epochs", "mean distance from its own mean, %")
    axes[0].axvline(0, color=MUTED, linewidth=0.9)
    axes[1].set_xlim(left=0)
    for row, pair in enumerate(found):
        ours, theirs = deviations(pair.scores), deviations(pair.published)
        for k, method in enumerate(study.methods):
            y, colour = row * step + k + 0.95, study.colour(method)
            _deviation(axes[0], y, colour, ours.get(method), theirs.get(method), pair.scores[method])
            _fluctuation(axes[1], y, colour, pair.scores[method], pair.published[method])
    _limits(axes[0], symmetric=True)
    _limits(axes[1])
    return sheet.figure


def _name(study: Study, pair: Pair) -> str:
    name = f"{study.label(pair.source)} → {study.label(pair.target)}"
    model = study.model_title(pair.model) if len(study.models) > 1 else ""
    further = ", ".join(part for part in (model, pair.variant) if part)
    return f"{name}\n{further}" if further else name


def _rows(axes: "Axes", names: Sequence[str], step: float) -> None:
    axes.grid(False)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_ylim(len(names) * step, 0)
    axes.set_yticks([(i + 0.5) * step for i in range(len(names))], names)
    axes.tick_params(axis="y", labelsize=8.5)
    for i in range(1, len(names)):
        axes.axhline(i * step, color=RULE, linewidth=0.5)


def _deviation(axes: "Axes", y: float, colour: str, ours: Any, theirs: Any, scores: Scores) -> None:
    if theirs:
        _marker(axes, statistics.fmean(theirs), y + BESIDE, "D", INK, True)
    if ours:
        axes.plot([min(ours), max(ours)], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
        _marker(axes, statistics.fmean(ours), y, "o", colour, False)
    else:
        free = -1 if theirs and statistics.fmean(theirs) > 0 else 1
        _cross(axes, y, scores.reason or "needs all methods", free)


def _fluctuation(axes: "Axes", y: float, colour: str, ours: Scores, theirs: Scores) -> None:
    if theirs.values and theirs.fluctuation is not None:
        _marker(axes, theirs.fluctuation, y + BESIDE, "D", INK, True)
    value = ours.fluctuation if ours.values else None
    if value is None:
        _cross(axes, y, ours.reason or "mean 0", at=(theirs.fluctuation or 0.0) if theirs.values else 0.0)
    else:
        axes.plot([0, value], [y, y], color=colour, linewidth=0.8, alpha=0.5, solid_capstyle="butt")
        _marker(axes, value, y, "o", colour, False)


def _marker(axes: "Axes", x: float, y: float, shape: str, colour: str, is_open: bool) -> None:
    axes.plot(
        [x],
        [y],
        marker=shape,
        markersize=3.6 if is_open else 5.4,
        markeredgewidth=0.9 if is_open else 1.1,
        markeredgecolor=colour,
        markerfacecolor=SURFACE if is_open else colour,
        linestyle="none",
        zorder=4 if is_open else 3,
    )


def _cross(axes: "Axes", y: float, reason: str, side: int = 1, at: float = 0.0) -> None:
    """Why there is no mark, to the right of ``at`` (``side`` 1) or to its left (-1): where no published one is."""
    axes.annotate(
        f"× {reason}",
        (at, y),
        (5 * side, 0),
        textcoords="offset points",
        fontsize=6.8,
        color=MUTED,
        ha="left" if side > 0 else "right",
        va="center",
        bbox=WHITE_BOX,
    )


def _limits(axes: "Axes", symmetric: bool = False) -> None:
    import numpy as np

    data = [line for line in axes.lines if line.get_transform() == axes.transData]
    values = [float(x) for line in data for x in np.asarray(line.get_xdata(), dtype=float)]
    low, high = min([0.0, *values]), max([0.0, *values])
    room = max(0.06 * (high - low), 0.1)
    axes.set_xlim(low - room if symmetric else 0.0, high + room)
    axes.locator_params(axis="x", nbins=6)


def _legend(study: Study, found: Sequence[Pair]) -> list[Any]:
    handles = [marker(study.colour(method), method_title(method)) for method in study.methods]
    if any(scores.values for pair in found for scores in pair.published.values()):
        handles.append(marker(INK, "published", "D", is_open=True))
    return handles
