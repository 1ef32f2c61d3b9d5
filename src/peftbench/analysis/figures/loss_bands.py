"""The paper's Figure 7: mean training loss over seeds with a 95 % band.

A panel per method and data set, a line per setting. Each run's losses are averaged over equal stretches of its steps,
at most ``STRETCHES``; at each stretch the line is the mean over the n seeds and the band ``mean +- t * s / sqrt(n)``
with Student's t of n - 1 degrees of freedom and the sample standard deviation s. Runs of one setting that differ in
their number of steps are cut to equally many stretches. One seed has no band. Runs whose training failed are left out:
their logs end early.
"""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from peftbench.analysis.dots import distinct
from peftbench.analysis.figures._logs import Log, NoLog, Points, thinned
from peftbench.analysis.figures._runs import Study, setting_key
from peftbench.analysis.figures._sheet import Context, Sheet, empty, heading, ramp, stroke
from peftbench.analysis.figures.losses import ABOUT_RUN, Curve, log_gaps, read_curves, say_no_curve
from peftbench.analysis.style import method_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRETCHES = 40
WIDTH, HEIGHT, GAP_X, GAP_Y = 2.55, 1.5, 0.4, 0.55
LEFT = 0.62
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
"""Of the settings in their order, besides their shades."""


class Band(Struct, frozen=True, kw_only=True):
    """Mean over seeds at each stretch; time in epochs."""

    x: list[float]
    mean: list[float]
    low: list[float]
    """Equal to the mean where there is one seed."""
    high: list[float]
    seeds: int


def band(runs: Sequence[Points]) -> Band:
    """Mean and 95 % t interval of the losses of runs that differ in their seed only (at least one)."""
    from scipy.stats import t

    count = min(STRETCHES, *(len(points) for points in runs)) if len(runs) > 1 else STRETCHES
    parts = [thinned(points, count) for points in runs]
    n = len(parts)
    columns = list(zip(*parts, strict=True))
    mean = [statistics.fmean(y for _, y in column) for column in columns]
    half = [0.0] * len(mean)
    if n > 1:
        factor = float(t.ppf(0.975, n - 1)) / math.sqrt(n)
        half = [factor * statistics.stdev(y for _, y in column) for column in columns]
    return Band(
        x=[statistics.fmean(x for x, _ in column) for column in columns],
        mean=mean,
        low=[m - h for m, h in zip(mean, half, strict=True)],
        high=[m + h for m, h in zip(mean, half, strict=True)],
        seeds=n,
    )


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table and its runs' logs."""
    study = Study(frame, apart=(*ABOUT_RUN, "dataset"))
    curves = [
        replace(curve, log=NoLog("training failed")) if curve.failed else curve
        for curve in read_curves(study, context)
    ]
    gaps = log_gaps(curves)
    if not any(_whole(curve) for curve in curves):
        reason = "no run has a log of its losses to the end" if curves else "the study has no tuned runs"
        return empty(context, reason, gaps)
    places = distinct((curve.model, curve.dataset) for curve in curves)
    variants = {method: _variants(curves, method) for method in study.methods}
    labels = [name for names in variants.values() for name in names]
    side = 0.5 + 0.066 * max(len(label) for label in labels) if any(labels) else 0.2
    sheet = Sheet(
        context.title,
        max(5.2, LEFT + len(places) * (WIDTH + GAP_X) + side),
        len(study.methods) * (HEIGHT + GAP_Y) + 0.15,
        (),
        [*_notes(curves), *gaps],
    )
    shared: dict[int, Axes] = {}
    for row, method in enumerate(study.methods):
        shades = ramp(study.colour(method), len(variants[method]))
        for column, (model, dataset) in enumerate(places):
            y = 0.32 + row * (HEIGHT + GAP_Y)
            axes = sheet.axes(LEFT + column * (WIDTH + GAP_X), y, WIDTH, HEIGHT, sharey=shared.get(column))
            shared.setdefault(column, axes)
            here = [c for c in curves if (c.model, c.dataset, c.method) == (model, dataset, method)]
            name = study.label(str(dataset))
            if len(study.models) > 1:
                name = f"{study.model_title(str(model))}, {name}"
            heading(axes, f"{method_title(method)}, {name}")
            _panel(axes, here, variants[method], shades)
            if column == 0:
                axes.set_ylabel("training loss", fontsize=8)
            if row == len(study.methods) - 1:
                axes.set_xlabel("epoch", fontsize=8)
            if column == len(places) - 1 and any(variants[method]):
                _key(axes, variants[method], shades)
    for axes in shared.values():
        axes.set_ylim(bottom=0)
    return sheet.figure


def _whole(curve: Curve) -> Points:
    """A run's training losses; none where it has no log to its end."""
    return curve.log.train if isinstance(curve.log, Log) else []


def _variants(curves: Sequence[Curve], method: str) -> list[str]:
    """Settings of a method from small to large."""
    names = distinct(curve.variant for curve in curves if curve.method == method)
    return sorted(names, key=lambda name: [setting_key(word.strip(",")) for word in name.split()])


def _panel(axes: "Axes", curves: Sequence[Curve], variants: Sequence[str], shades: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = False
    for k, variant in enumerate(variants):
        runs = [_whole(c) for c in curves if c.variant == variant and _whole(c)]
        if not runs:
            continue
        drawn = True
        found = band(runs)
        if found.seeds > 1:
            axes.fill_between(found.x, found.low, found.high, color=shades[k], alpha=0.16, linewidth=0)
        mark = "." if len(found.x) == 1 else ""
        style = STYLES[k % len(STYLES)]
        axes.plot(found.x, found.mean, color=shades[k], linewidth=1.3, linestyle=style, marker=mark)
    if not drawn:
        say_no_curve(axes, curves)
        return
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _key(axes: "Axes", variants: Sequence[str], shades: Sequence[str]) -> None:
    handles = [
        stroke(shade, variant or "as it is", 1.6, STYLES[k % len(STYLES)])
        for k, (variant, shade) in enumerate(zip(variants, shades, strict=True))
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.03, 1.0),
        frameon=False,
        fontsize=7.5,
        handlelength=2.4,
        borderaxespad=0,
    )


def _notes(curves: Sequence[Curve]) -> list[str]:
    counts = []
    for place in distinct((c.model, c.dataset, c.method, c.variant) for c in curves):
        there = [c for c in curves if (c.model, c.dataset, c.method, c.variant) == place and _whole(c)]
        counts.append(len(there))
    counts = [count for count in counts if count]
    if max(counts) == 1:
        return ["One seed: no bands."]
    seeds = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(max(counts))
    note = f"Mean over {seeds} seeds; shaded: 95 % interval by Student's t."
    return [note + (" Settings with one seed have no band." if min(counts) == 1 else "")]
