"""Methods by two summaries of the study's table, such as score against cost, with the Pareto frontier marked.

A panel for each pair of summaries (``pairs`` of the study); where the table's columns are what is tested on, a row of
panels for each data set tuned on, after one for their mean. The frontier is that of the values as they are: a method
that it leaves out may still be as good within the intervals.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.dots import Row, distinct
from peftbench.analysis.figures._frontier import frontier, place_labels, staircase
from peftbench.analysis.figures._runs import Gap, Study, by, merged
from peftbench.analysis.figures._sheet import (
    BASE_DASH,
    CHARACTER,
    Context,
    Sheet,
    cross,
    empty,
    heading,
    marker,
    stroke,
)
from peftbench.analysis.outcomes import Estimate, average
from peftbench.analysis.style import INK, MUTED, RULE, SERIES, SURFACE, UNTUNED_TITLE, method_title
from peftbench.analysis.summaries import (
    ABSENT,
    UNITS,
    Number,
    cost_text,
    costs_of,
    summarise,
    without_change,
)

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, GAP_X, GAP_Y, LEFT = 3.9, 3.4, 0.65, 0.85, 0.65
COLUMNS = 3
"""Most panels beside each other."""
LABEL = 7.0
"""Font size of the methods' names."""
ON = SERIES[0]
"""Colour of what is on the frontier."""


class Point(Struct, frozen=True, kw_only=True):
    """One method in one variant with its summaries."""

    name: str
    numbers: dict[str, Number]


class Group(Struct, frozen=True, kw_only=True):
    """What is compared in one row of panels: the methods tuned on one data set, or their means over all."""

    model: str
    title: str
    points: list[Point]
    base: dict[str, Number]


def groups_of(study: Study, context: Context) -> list[Group]:
    """All groups, model by model."""
    apart = context.columns == "target"
    found = []
    for model in study.models:
        tuned = [row for row in study.tuned if row["model"] == model]
        untuned = [row for row in study.untuned if row["model"] == model]
        sets = distinct(row["dataset"] for row in tuned) if apart else [None]
        single = [_group(study, context, model, name, tuned, untuned) for name in sets]
        if len(single) > 1:
            found.append(_mean_group(single))
        found.extend(single)
    return found


def _group(
    study: Study, context: Context, model: str, dataset: Any, tuned: Sequence[Row], untuned: Sequence[Row]
) -> Group:
    base_numbers: dict[Any, Number] = {}
    for row in untuned:
        base_numbers.setdefault(row[context.columns], _number([row]))
    plain = without_change(context.summaries)
    base = summarise(plain, base_numbers, dataset, None, lambda _: None)
    points = []
    here = [row for row in tuned if dataset is None or row["dataset"] == dataset]
    for (method, variant), rows in by(here, "method", "variant").items():
        columns = {key[0]: _number(found) for key, found in by(rows, context.columns).items()}
        costs = costs_of(context.results, [row["scores"] for row in rows])
        numbers = summarise(context.summaries, columns, dataset, base, costs)
        name = ", ".join(part for part in (method_title(method), variant) if part)
        points.append(Point(name=name, numbers=numbers))
    base |= {name: _zero(base[name]) for name, summary in context.summaries.items() if summary.change}
    title = "" if dataset is None else f"tuned on {context.labels.get(dataset, dataset)}"
    return Group(model=study.model_title(model), title=title, points=points, base=base)


def _zero(number: Number) -> Number:
    """What the base gains over itself."""
    if number.estimate is None:
        return number
    nothing = Estimate(value=0.0, stderr=0.0, low=0.0, high=0.0, n=number.estimate.n)
    return Number(estimate=nothing, higher_is_better=number.higher_is_better)


def _number(rows: Sequence[Row]) -> Number:
    found = merged(rows)
    higher = bool(rows[0]["higher_is_better"])
    if isinstance(found, Gap):
        return Number(reason=found.reason, higher_is_better=higher)
    return Number(estimate=found, higher_is_better=higher)


def _mean_group(groups: Sequence[Group]) -> Group:
    names = distinct(point.name for group in groups for point in group.points)
    points = []
    for name in names:
        own = [point.numbers for group in groups for point in group.points if point.name == name]
        if len(own) == len(groups):
            points.append(Point(name=name, numbers={key: _mean([n[key] for n in own]) for key in own[0]}))
    base = {key: _mean([group.base[key] for group in groups]) for key in groups[0].base}
    return Group(
        model=groups[0].model, title=f"mean over {len(groups)} data sets tuned on", points=points, base=base
    )


def _mean(numbers: Sequence[Number]) -> Number:
    estimates = [number.estimate for number in numbers if number.estimate is not None]
    if len(estimates) < len(numbers):
        return Number(reason=next(number.reason for number in numbers if number.estimate is None))
    return Number(estimate=average(estimates), higher_is_better=numbers[0].higher_is_better)


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table."""
    apart = ("dataset",) if context.columns == "target" else ()
    study = Study(frame, apart)
    if not context.pairs:
        return empty(context, "the study names no pairs of summaries", study.gaps)
    if not study.tuned:
        return empty(context, "the study has no tuned runs", study.gaps)
    groups = groups_of(study, context)
    one_pair = len(context.pairs) == 1
    panels = [(group, pair) for group in groups for pair in context.pairs]
    columns = min(COLUMNS, len(panels)) if one_pair else min(COLUMNS, len(context.pairs))
    rows = math.ceil(len(panels) / columns)
    sheet = Sheet(
        context.title,
        LEFT + columns * (WIDTH + GAP_X),
        rows * (HEIGHT + GAP_Y),
        _legend(groups, context),
        [
            "On the frontier: no other method is at least as good in both and better in one. It is that of the values "
            "as they are; lines are 95 % intervals over the test examples.",
            *study.gaps,
        ],
    )
    several = len(study.models) > 1
    for place, (group, pair) in enumerate(panels):
        row, column = divmod(place, columns)
        axes = sheet.axes(LEFT + column * (WIDTH + GAP_X), 0.42 + row * (HEIGHT + GAP_Y), WIDTH, HEIGHT)
        named = [context.summaries[name].title for name in pair]
        what = ", ".join(part for part in (group.model if several else "", group.title) if part)
        heading(axes, what or f"{named[1]} against {named[0].lower()}")
        _panel(axes, group, pair, context)
    return sheet.figure


def _panel(axes: "Axes", group: Group, pair: tuple[str, str], context: Context) -> None:
    known: list[tuple[str, Number, Number, Estimate, Estimate]] = []
    for point in group.points:
        x, y = (point.numbers[name] for name in pair)
        if x.estimate is not None and y.estimate is not None:
            known.append((point.name, x, y, x.estimate, y.estimate))
    if not known:
        reasons = {point.numbers[name].reason for point in group.points for name in pair} - {""}
        cross(axes, "not run" if reasons <= {ABSENT} else min(reasons - {ABSENT}))
        return
    values = [(x.value, y.value) for *_, x, y in known]
    higher = known[0][1].higher_is_better, known[0][2].higher_is_better
    on = frontier(values, *higher)
    logarithmic = context.summaries[pair[0]].cost == "parameters" and min(x for x, _ in values) > 0
    if logarithmic:
        axes.set_xscale("log")
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.plot(
        *staircase([value for value, best in zip(values, on, strict=True) if best], *higher),
        color=ON,
        linewidth=1.1,
        alpha=0.6,
        zorder=1.5,
    )
    for (*_, across, up), best in zip(known, on, strict=True):
        style: Any = {"color": ON if best else MUTED, "linewidth": 0.8, "alpha": 0.3, "zorder": 1.6}
        axes.plot([across.value] * 2, [up.low, up.high], solid_capstyle="butt", **style)
        if across.stderr:
            axes.plot([across.low, across.high], [up.value] * 2, solid_capstyle="butt", **style)
        axes.plot(
            [across.value],
            [up.value],
            marker="o",
            markersize=5.2,
            markeredgewidth=1.2,
            markeredgecolor=ON if best else MUTED,
            markerfacecolor=ON if best else SURFACE,
            linestyle="none",
            zorder=3,
        )
    _base(axes, group, pair)
    for axis, name in (("x", pair[0]), ("y", pair[1])):
        summary = context.summaries[name]
        unit = UNITS.get(summary.cost, "")
        getattr(axes, f"set_{axis}label")(summary.title + (f" ({unit})" if unit else ""), fontsize=8)
    if logarithmic:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if context.summaries[pair[0]].cost:
        axes.xaxis.set_major_formatter(lambda value, _: cost_text(context.summaries[pair[0]].cost, value))
    axes.margins(0.09 if not logarithmic else 0.12, 0.12)
    _names(axes, [name for name, *_ in known], values, on)


def _base(axes: "Axes", group: Group, pair: tuple[str, str]) -> None:
    """The untuned base: a point where both summaries are of scores, else a line at its score."""
    x, y = (group.base.get(name, Number(reason=ABSENT)).estimate for name in pair)
    if y is None:
        return
    if x is None:
        axes.axhline(y.value, color=MUTED, linewidth=1.1, linestyle=BASE_DASH, zorder=1.2)
        return
    axes.plot([x.value], [y.value], marker="D", markersize=5.4, color=INK, linestyle="none", zorder=3)


def _names(
    axes: "Axes", names: Sequence[str], values: Sequence[tuple[float, float]], on: Sequence[bool]
) -> None:
    """The methods' names beside their points, where they cover least."""
    # Limits are else computed when the figure is drawn, and would move points from under their labels.
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    scale = 72 / axes.figure.dpi
    pixels = axes.transData.transform(values) * scale
    corners = axes.transAxes.transform([(0, 0), (1, 1)]) * scale
    (left_edge, low_edge), (right_edge, high_edge) = corners.tolist()
    area = (left_edge, low_edge, right_edge, high_edge)
    order = sorted(range(len(names)), key=lambda i: not on[i])
    sizes = [(len(names[i]) * CHARACTER * LABEL * 72 * 1.06, LABEL * 1.25) for i in order]
    spots = place_labels([(float(pixels[i][0]), float(pixels[i][1])) for i in order], sizes, area)
    for i, (left, low, line), (width, height) in zip(order, spots, sizes, strict=True):
        x, y = float(pixels[i][0]), float(pixels[i][1])
        arrow = (
            {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            if line
            else None
        )
        axes.annotate(
            names[i],
            values[i],
            (left + width / 2 - x, low + height / 2 - y),
            textcoords="offset points",
            fontsize=LABEL,
            color=INK if on[i] else MUTED,
            fontweight="bold" if on[i] else "normal",
            ha="center",
            va="center",
            arrowprops=arrow,
            bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 0.5, "alpha": 0.75},
            zorder=4,
        )


def _legend(groups: Sequence[Group], context: Context) -> list[Any]:
    handles = [marker(ON, "on the frontier", line=True), marker(MUTED, "not on it", is_open=True)]
    known = [
        [group.base.get(name, Number(reason=ABSENT)).estimate is not None for name in pair]
        for group in groups
        for pair in context.pairs
    ]
    if [True, True] in known:
        handles.append(marker(INK, UNTUNED_TITLE, "D"))
    if [False, True] in known:
        handles.append(stroke(MUTED, UNTUNED_TITLE, 1.1, BASE_DASH))
    return handles
