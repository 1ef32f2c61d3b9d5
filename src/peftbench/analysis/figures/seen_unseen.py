"""The paper's Figure 2: mean score of each method on the unseen and on the seen data sets.

A panel per setting (connector tuned, connector frozen), a pair of markers per method. A mean is over all models
and all data sets of its group, each with the same weight; it is drawn only where all its runs have a score. Its
95 % interval is that of the test examples: models answer the same examples, so their errors count as fully
dependent (an upper bound), while data sets are independent of each other.
"""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.dots import Row
from peftbench.analysis.figures._runs import Gap, Number, Study, by, mean_of, merged
from peftbench.analysis.figures._sheet import (
    BASE_DASH,
    WHITE_BOX,
    Context,
    Sheet,
    empty,
    heading,
    marker,
    stroke,
)
from peftbench.analysis.outcomes import Z95, Estimate
from peftbench.analysis.style import INK, MUTED, SURFACE, UNTUNED_TITLE, method_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = {False: "unseen", True: "seen"}
"""Whether the base models saw the data set before -> what its group is called."""
SHAPES = {False: "o", True: "s"}
HEIGHT = 2.7
METHOD_WIDTH = 0.78
OFFSETS = {False: -0.17, True: 0.17}
"""Of the two groups from the middle of their method."""


class Mean(Struct, frozen=True, kw_only=True):
    """The mean score of one method in one setting over one group of data sets."""

    variant: str
    method: str
    seen: bool
    value: Number
    published: Number


def means(study: Study) -> list[Mean]:
    """All means of a study's tuned runs."""
    groups = by(study.tuned, "variant", "method", "seen")
    whole = {seen: {(r["model"], r["target"]) for r in study.tuned if r["seen"] == seen} for seen in GROUPS}
    return [
        Mean(
            variant=variant,
            method=method,
            seen=seen,
            value=_mean(rows, whole[seen], "value"),
            published=_mean(rows, whole[seen], "published"),
        )
        for (variant, method, seen), rows in groups.items()
    ]


def base_means(study: Study) -> dict[bool, Number]:
    """The means of the untuned models, as far as the study has them."""
    return {
        seen: _mean(rows, {(row["model"], row["target"]) for row in rows}, "value")
        for (seen,), rows in by(study.untuned, "seen").items()
    }


def _mean(rows: Sequence[Row], places: set[tuple[str, str]], column: str) -> Number:
    """Mean over models and data sets; every one of ``places`` (model, data set) has to be there."""
    found = by(rows, "model", "target")
    numbers = {place: merged(found[place], column) if place in found else Gap("not run") for place in places}
    bad = mean_of([numbers[place] for place in sorted(places)])
    if isinstance(bad, Gap):
        return bad
    targets = sorted({target for _, target in places})
    return mean_of([_over_models([n for (_, t), n in numbers.items() if t == name]) for name in targets])


def _over_models(numbers: Sequence[Number]) -> Number:
    """Mean over models on one data set: their errors, on the same examples, count as fully dependent."""
    estimates = [number for number in numbers if isinstance(number, Estimate)]
    value = statistics.fmean(estimate.value for estimate in estimates)
    stderr = statistics.fmean(estimate.stderr for estimate in estimates)
    return Estimate(
        value=value,
        stderr=stderr,
        low=value - Z95 * stderr,
        high=value + Z95 * stderr,
        n=min(estimate.n for estimate in estimates),
    )


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table."""
    study = Study(frame)
    found = means(study)
    if not any(isinstance(mean.value, Estimate) for mean in found):
        return empty(context, _why_empty(study, found), study.gaps)
    if not study.one_direction:
        return empty(context, "higher is better on some of the data sets and lower on others", study.gaps)
    seen = [flag for flag in GROUPS if any(mean.seen == flag for mean in found)]
    base = base_means(study)
    columns = min(len(study.variants), max(1, int(7.2 / (METHOD_WIDTH * len(study.methods)))))
    rows = math.ceil(len(study.variants) / columns)
    panel = max(2.4, METHOD_WIDTH * len(study.methods))
    left, right = 0.55, 0.15
    sheet = Sheet(
        context.title,
        max(5.2, left + columns * (panel + 0.3) + right - 0.3),
        rows * (HEIGHT + 0.62),
        _legend(study, found, seen, base),
        [*_notes(study, seen), *_base_notes(base), *study.gaps],
    )
    first = None
    for place, variant in enumerate(study.variants):
        row, column = divmod(place, columns)
        axes = sheet.axes(
            left + column * (panel + 0.3), 0.3 + row * (HEIGHT + 0.62), panel, HEIGHT, sharey=first
        )
        first = first or axes
        axes.tick_params(labelleft=column == 0)
        if column == 0:
            axes.set_ylabel("Mean score", fontsize=8)
        heading(axes, (variant or "All runs")[:1].upper() + (variant or "All runs")[1:])
        _panel(axes, study, [mean for mean in found if mean.variant == variant], base)
    return sheet.figure


def _panel(axes: "Axes", study: Study, found: Sequence[Mean], base: dict[bool, Number]) -> None:
    axes.set_xlim(-0.5, len(study.methods) - 0.5)
    axes.set_xticks(range(len(study.methods)), [method_title(name) for name in study.methods], color=INK)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.locator_params(axis="y", nbins=6)
    for seen, number in base.items():
        if isinstance(number, Estimate):
            dash: Any = BASE_DASH if not seen else (0, (1, 1.5))
            axes.axhline(number.value, color=MUTED, linewidth=1.1, linestyle=dash)
    for mean in found:
        middle = study.methods.index(mean.method)
        x, colour = middle + OFFSETS[mean.seen], study.colour(mean.method)
        if isinstance(mean.published, Estimate):
            _marker(axes, x + 0.12, mean.published.value, SHAPES[mean.seen], colour, True)
        if isinstance(mean.value, Gap):
            axes.annotate(
                f"× {mean.value.reason}",
                (x, 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=6.8,
                color=MUTED,
                ha="center",
                va="bottom",
                bbox=WHITE_BOX,
            )
            continue
        axes.plot(
            [x, x], [mean.value.low, mean.value.high], color=colour, linewidth=1.6, solid_capstyle="butt"
        )
        _marker(axes, x, mean.value.value, SHAPES[mean.seen], colour, False)
    values = [m.value.value for m in found if isinstance(m.value, Estimate)]
    axes.update_datalim([(0, value) for value in values])


def _marker(axes: "Axes", x: float, y: float, shape: str, colour: str, is_open: bool) -> None:
    axes.plot(
        [x],
        [y],
        marker=shape,
        markersize=4.4 if is_open else 6.2,
        markeredgewidth=1.1,
        markeredgecolor=colour,
        markerfacecolor=SURFACE if is_open else colour,
        linestyle="none",
        zorder=3,
    )


def _legend(study: Study, found: Sequence[Mean], seen: Sequence[bool], base: dict[bool, Number]) -> list[Any]:
    handles = [marker(INK, f"{GROUPS[flag]} data sets", SHAPES[flag], line=True) for flag in seen]
    if any(isinstance(mean.published, Estimate) for mean in found):
        handles.append(marker(INK, "published", "o", is_open=True))
    for flag, number in base.items():
        if isinstance(number, Estimate):
            style = BASE_DASH if not flag else (0, (1, 1.5))
            handles.append(stroke(MUTED, f"{UNTUNED_TITLE}, {GROUPS[flag]}", 1.1, style))
    return handles


def _notes(study: Study, seen: Sequence[bool]) -> list[str]:
    parts = []
    for flag in seen:
        names = list(dict.fromkeys(r["dataset_label"] for r in study.tuned if r["seen"] == flag))
        parts.append(f"{GROUPS[flag].capitalize()}: {', '.join(names)}.")
    models = [study.model_title(model) for model in study.models]
    over = f"Means over {len(models)} models ({', '.join(models)})" if len(models) > 1 else models[0]
    note = f"{over}; lines: 95 % interval over the test examples."
    missing = [GROUPS[flag] for flag in GROUPS if flag not in seen]
    return [" ".join(parts), note, *(f"The study has no {name} data set." for name in missing)]


def _base_notes(base: dict[bool, Number]) -> list[str]:
    """Why the untuned base has no line where it is in the study."""
    return [
        f"No line of the {UNTUNED_TITLE}, {GROUPS[seen]}: {number.reason}."
        for seen, number in base.items()
        if isinstance(number, Gap)
    ]


def _why_empty(study: Study, found: Sequence[Mean]) -> str:
    if not study.tuned:
        return "the study has no tuned runs"
    reasons = [mean.value.reason for mean in found if isinstance(mean.value, Gap)]
    return f"no mean has all its runs ({reasons[0]})"
