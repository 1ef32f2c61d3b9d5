"""The paper's Figures 3 and 8: training loss and evaluation loss of each method on each source data set.

A panel per data set and method; panels of one data set share the scale of the loss, which is logarithmic. The
training loss is drawn faint as it was logged (long logs as means of equal stretches) with a moving mean over a
fortieth of the run on top; the evaluation loss stands at the end of each epoch. Marked are the epoch of the lowest
evaluation loss (of equals the first) and the four epochs nearest to it in time (of two equally near the later one
first), whose weights the paper tests on other data sets.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.dots import distinct
from peftbench.analysis.figures._logs import (
    Log,
    NoLog,
    overfitting_epochs,
    read_log,
    run_folder,
    smoothed,
    thinned,
)
from peftbench.analysis.figures._runs import Study
from peftbench.analysis.figures._sheet import EDGE, Context, Sheet, empty, heading, marker, mixed, stroke
from peftbench.analysis.style import DASHES, INK, MUTED, SURFACE, method_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, GAP_X, GAP_Y = 1.72, 1.45, 0.2, 0.4
LEFT = 0.68
HEAD = 0.3
"""Room for the names of the methods above the first row."""
POINTS = 400
"""Most points of a training curve."""
DECADES = 4
"""Most decades that a scale spans: a loss of zero must not flatten all others."""
ABOUT_RUN = ("epoch", "measure")
"""Axes that do not tell runs from each other, only what is asked of them."""


class Curve(Struct, frozen=True, kw_only=True):
    """One run."""

    model: str
    dataset: str
    method: str
    variant: str
    seed: int
    log: Log | NoLog
    marks: list[int]
    """The epoch of the lowest evaluation loss, then those nearest to it."""
    failed: bool
    """Whether its training failed: then its log ends early."""


def read_curves(study: Study, context: Context) -> list[Curve]:
    """Each run of a study once, in its order."""
    curves: dict[Any, Curve] = {}
    for row in study.tuned:
        folder = run_folder(row, context.results)
        key = (folder, *(row[name] for name in ("model", "dataset", "method", "variant", "seed")))
        if key not in curves:
            log = read_log(folder)
            curves[key] = Curve(
                model=row["model"],
                dataset=row["dataset"],
                method=row["method"],
                variant=row["variant"],
                seed=row["seed"],
                log=log,
                marks=overfitting_epochs(folder, log) if isinstance(log, Log) else [],
                failed=row["status"] == "failed" and str(row["reason"]).startswith("training failed"),
            )
    return list(curves.values())


def log_gaps(curves: Sequence[Curve]) -> list[str]:
    """A note on the runs without a log."""
    reasons = [curve.log.reason for curve in curves if isinstance(curve.log, NoLog)]
    if not reasons:
        return []
    counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in distinct(reasons))
    return [f"{len(reasons)} of {len(curves)} runs have no curve ({counts})."]


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table and its runs' logs."""
    study = Study(frame, apart=(*ABOUT_RUN, "dataset"))
    curves = read_curves(study, context)
    notes = log_gaps(curves)
    if not any(isinstance(curve.log, Log) for curve in curves):
        reason = "no run has a log of its losses" if curves else "the study has no tuned runs"
        return empty(context, reason, notes)
    places = distinct((curve.model, curve.dataset) for curve in curves)
    columns = study.methods
    sheet = Sheet(
        context.title,
        max(5.2, LEFT + len(columns) * (WIDTH + GAP_X) + EDGE),
        HEAD + len(places) * (HEIGHT + GAP_Y) + 0.05,
        _legend(study, curves),
        [*_notes(study, curves), *notes],
    )
    for row, (model, dataset) in enumerate(places):
        first = None
        here = [curve for curve in curves if (curve.model, curve.dataset) == (model, dataset)]
        for column, method in enumerate(columns):
            y = HEAD + row * (HEIGHT + GAP_Y)
            axes = sheet.axes(LEFT + column * (WIDTH + GAP_X), y, WIDTH, HEIGHT, sharey=first)
            first = first or axes
            name = study.label(str(dataset))
            if len(study.models) > 1:
                name = f"{study.model_title(str(model))}\n{name}"
            _panel(axes, study, [curve for curve in here if curve.method == method], method)
            if row == 0:
                heading(axes, method_title(method))
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(f"{name}\nloss", fontsize=8)
            if row == len(places) - 1 and axes.get_xticks().size:
                axes.set_xlabel("epoch", fontsize=8)
        assert first is not None
        _scale(first, [curve.log for curve in here if isinstance(curve.log, Log)])
    return sheet.figure


def say_no_curve(axes: "Axes", curves: Sequence[Curve]) -> None:
    """In an empty panel: why there is no curve."""
    reasons = [curve.log.reason for curve in curves if isinstance(curve.log, NoLog)]
    axes.annotate(
        f"× {reasons[0]}" if reasons else "× not run",
        (0.5, 0.5),
        xycoords="axes fraction",
        fontsize=7.5,
        color=MUTED,
        ha="center",
        va="center",
    )
    axes.set_xticks([])


def _panel(axes: "Axes", study: Study, curves: Sequence[Curve], method: str) -> None:
    from matplotlib.ticker import MaxNLocator

    colour = study.colour(method)
    there = [curve for curve in curves if isinstance(curve.log, Log)]
    if not there:
        say_no_curve(axes, curves)
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for curve in there:
        assert isinstance(curve.log, Log)
        style = _dash(study.variants.index(curve.variant))
        raw = thinned(curve.log.train, POINTS)
        if len(there) == 1:
            axes.plot(*_xy(raw), color=colour, linewidth=0.6, alpha=0.25)
        pale = mixed(colour, SURFACE, 0.35)
        if len(raw) == 1:
            axes.plot(*_xy(raw), color=pale, marker=".", linestyle="none")
        axes.plot(*_xy(smoothed(raw)), color=pale, linewidth=1.2, linestyle=style)
        if curve.log.evaluation:
            _evaluation(axes, curve.log.evaluation, colour, style, curve.marks if curve is there[0] else [])
    axes.set_xlim(left=0)


def _evaluation(
    axes: "Axes", losses: dict[int, float], colour: str, style: Any, marks: Sequence[int]
) -> None:
    dark = mixed(colour, INK, 0.3)
    epochs = sorted(losses)
    axes.plot(
        epochs,
        [losses[e] for e in epochs],
        color=dark,
        linewidth=1.5,
        linestyle=style,
        marker="o",
        markersize=2.6,
        zorder=3,
    )
    for epoch in marks[:1]:
        axes.plot([epoch], [losses[epoch]], color=dark, marker="o", markersize=7.4, zorder=4)
    for number, epoch in enumerate(marks[1:], start=1):
        axes.plot(
            [epoch],
            [losses[epoch]],
            marker="o",
            markersize=7.4,
            markerfacecolor=SURFACE,
            markeredgecolor=dark,
            markeredgewidth=0.9,
            zorder=4,
        )
        axes.annotate(
            str(number),
            (epoch, losses[epoch]),
            (0, -0.2),
            textcoords="offset points",
            fontsize=5.6,
            color=INK,
            ha="center",
            va="center_baseline",
            zorder=5,
        )


def _scale(axes: "Axes", logs: Sequence[Log]) -> None:
    """A logarithmic scale over the smoothed training losses and the evaluation losses of a row of panels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    values = [y for log in logs for _, y in smoothed(thinned(log.train, POINTS))]
    values += [y for log in logs for y in log.evaluation.values()]
    high = max(values)
    if high <= 0:
        return
    low = max(min(values), high / 10**DECADES)
    room = max(1.12, (high / low) ** 0.08)
    low, high = low / room, high * room
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.6 else (1.0, 3.0) if decades > 1.4 else (1.0, 2.0, 3.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _dash(position: int) -> Any:
    """Line style of a variant, as matplotlib has it."""
    text = DASHES[position % len(DASHES)]
    return (0, tuple(float(part) for part in text.split())) if text else "-"


def _legend(study: Study, curves: Sequence[Curve]) -> list[Any]:
    handles = [stroke(mixed(INK, SURFACE, 0.5), "training loss", 1.2)]
    if any(isinstance(curve.log, Log) and curve.log.evaluation for curve in curves):
        handles += [
            marker(INK, "evaluation loss", line=True),
            marker(INK, "its lowest"),
            marker(INK, "1 to 4: the epochs nearest to it", is_open=True),
        ]
        handles[1].set_markersize(2.6)
    if len(study.variants) > 1:
        handles += [
            stroke(INK, variant or "as it is", 1.2, _dash(k)) for k, variant in enumerate(study.variants)
        ]
    return handles


def _notes(study: Study, curves: Sequence[Curve]) -> list[str]:
    failed = sum(curve.failed for curve in curves)
    notes = (
        [f"{failed} of {len(curves)} runs failed in training: what they logged is drawn."] if failed else []
    )
    logs = [curve.log for curve in curves if isinstance(curve.log, Log)]
    without = sum(not log.evaluation for log in logs)
    if without:
        notes.append(f"{without} of {len(logs)} runs measure no evaluation loss.")
    if len({curve.seed for curve in curves}) > 1 or len(study.variants) > 1:
        notes.append("Epochs are marked for the first run of a panel only.")
    return notes
