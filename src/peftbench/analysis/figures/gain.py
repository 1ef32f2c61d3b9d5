"""The paper's Figure 6: what the average score gains, relatively, from one number of training examples to the next.

The gain from size a to the next size b is ``100 * (average_b - average_a) / average_a``, where an average is over
all data sets of the study with the same weight. It is drawn only where all runs behind both averages have a score.
Its 95 % interval is by the delta method, the two averages taken as independent; they are over the same test
examples, so it is rather too wide.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.dots import distinct
from peftbench.analysis.figures._runs import (
    Gap,
    Number,
    Study,
    by,
    mean_over_targets,
    published_only,
    setting_key,
)
from peftbench.analysis.figures._sheet import WHITE_BOX, Context, Sheet, empty, heading, marker, mixed, patch
from peftbench.analysis.outcomes import Z95, Estimate
from peftbench.analysis.style import INK, MUTED, SURFACE, method_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.5
METHOD_WIDTH = 1.15
SHADES = (0.0, 0.55, 0.3, 0.75)
"""Share of white in the bars of the first step, the second and so on."""


class Gain(Struct, frozen=True, kw_only=True):
    """The relative gain of one method at one step, in percent."""

    model: str
    variant: str
    method: str
    step: tuple[str, str]
    """Numbers of training examples before and after."""
    value: Number
    published: float | None


def gains(study: Study) -> list[Gain]:
    """All gains; none where there is one size only. ``study`` was read with ``train_size`` apart."""
    sizes = sorted(distinct(row["train_size"] for row in study.tuned), key=setting_key)
    found = []
    for (model, variant, method), rows in by(study.tuned, "model", "variant", "method").items():
        groups = by(rows, "train_size")
        targets = distinct(row["target"] for row in study.tuned if row["model"] == model)
        for low, high in itertools.pairwise(sizes):
            both = [
                [
                    mean_over_targets(groups.get((size,), []), targets, column)
                    if (size,) in groups
                    else Gap("not run")
                    for size in (low, high)
                ]
                for column in ("value", "published")
            ]
            found.append(
                Gain(
                    model=model,
                    variant=variant,
                    method=method,
                    step=(low, high),
                    value=relative_gain(*both[0]),
                    published=published_only(relative_gain(*both[1])),
                )
            )
    return found


def relative_gain(before: Number, after: Number) -> Number:
    """By how many percent ``after`` is above ``before``."""
    for number in (before, after):
        if isinstance(number, Gap):
            return number
    assert isinstance(before, Estimate) and isinstance(after, Estimate)
    if before.value <= 0:
        return Gap("from 0")
    ratio = after.value / before.value
    error = math.hypot(after.stderr, ratio * before.stderr) / before.value
    value = 100 * (ratio - 1)
    return Estimate(
        value=value,
        stderr=100 * error,
        low=value - 100 * Z95 * error,
        high=value + 100 * Z95 * error,
        n=min(before.n, after.n),
    )


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table."""
    study = Study(frame, apart=("train_size",))
    found = gains(study)
    if not found:
        what = "one number of training examples only" if study.tuned else "no tuned runs"
        return empty(context, f"the study has {what}", study.gaps)
    if not study.one_direction:
        return empty(context, "higher is better on some of the data sets and lower on others", study.gaps)
    if not any(isinstance(gain.value, Estimate) for gain in found):
        gap = next(gain.value.reason for gain in found if isinstance(gain.value, Gap))
        return empty(context, f"no average has all its runs ({gap})", study.gaps)
    panels = distinct((gain.model, gain.variant) for gain in found)
    width = max(3.4, METHOD_WIDTH * len(study.methods))
    columns = max(1, min(len(panels), int(7.6 / width)))
    rows = math.ceil(len(panels) / columns)
    left, gap_x, gap_y = 0.6, 0.35, 0.62
    steps = distinct(gain.step for gain in found)
    sheet = Sheet(
        context.title,
        max(5.2, left + columns * (width + gap_x)),
        rows * (HEIGHT + gap_y),
        _legend(found, steps),
        [_note(study), *study.gaps],
    )
    first = None
    for place, (model, variant) in enumerate(panels):
        row, column = divmod(place, columns)
        axes = sheet.axes(
            left + column * (width + gap_x), 0.3 + row * (HEIGHT + gap_y), width, HEIGHT, sharey=first
        )
        first = first or axes
        axes.tick_params(labelleft=column == 0)
        if column == 0:
            axes.set_ylabel("Gain of the average (%)", fontsize=8)
        names = [study.model_title(str(model)), str(variant)]
        heading(axes, ", ".join(name for name in names if name))
        here = [gain for gain in found if (gain.model, gain.variant) == (model, variant)]
        _panel(axes, study, here, steps)
    return sheet.figure


def _panel(axes: "Axes", study: Study, found: Sequence[Gain], steps: Sequence[Any]) -> None:
    width = 0.8 / len(steps)
    axes.set_xlim(-0.5, len(study.methods) - 0.5)
    axes.set_xticks(range(len(study.methods)), [method_title(name) for name in study.methods], color=INK)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.margins(y=0.12)
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10])
    for gain in found:
        k = steps.index(gain.step)
        colour = study.colour(gain.method)
        x = study.methods.index(gain.method) + (k - (len(steps) - 1) / 2) * width
        if isinstance(gain.value, Gap):
            axes.annotate(
                f"× {gain.value.reason}",
                (x, 0),
                (0, 3),
                textcoords="offset points",
                rotation=90,
                fontsize=6.8,
                color=MUTED,
                ha="center",
                va="bottom",
                bbox=WHITE_BOX,
            )
        else:
            _bar(axes, x, 0.88 * width, gain.value, colour, mixed(colour, SURFACE, SHADES[k % len(SHADES)]))
        if gain.published is not None:
            axes.plot(
                [x + 0.27 * width],
                [gain.published],
                marker="D",
                markersize=4.6,
                markeredgewidth=1.2,
                markeredgecolor=INK,
                markerfacecolor=SURFACE,
                linestyle="none",
                zorder=4,
            )


def _bar(axes: "Axes", x: float, width: float, number: Estimate, colour: str, fill: str) -> None:
    axes.bar([x], [number.value], width=width, color=fill, edgecolor=colour, linewidth=1.1)
    error = x - 0.2 * width
    axes.plot(
        [error, error], [number.low, number.high], color=INK, linewidth=1.1, solid_capstyle="butt", zorder=3
    )
    up = number.value >= 0
    axes.annotate(
        f"{number.value:.1f}",
        (x, max(number.high, 0) if up else min(number.low, 0)),
        (0, 3 if up else -3),
        textcoords="offset points",
        fontsize=7.5,
        ha="center",
        va="bottom" if up else "top",
        bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 0.6},
        zorder=5,
    )


def _legend(found: Sequence[Gain], steps: Sequence[Any]) -> list[Any]:
    handles = [
        patch(mixed(MUTED, SURFACE, SHADES[k % len(SHADES)]), f"{_size(low)} to {_size(high)} examples")
        for k, (low, high) in enumerate(steps)
    ]
    if any(gain.published is not None for gain in found):
        handles.append(marker(INK, "published", "D", is_open=True))
    return handles


def _size(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else "all" if text == "full" else text


def _note(study: Study) -> str:
    sets = distinct(row["dataset_label"] for row in study.tuned)
    over = f"Average over {len(sets)} data sets" if len(sets) > 1 else sets[0]
    return f"{over}; lines: 95 % interval over the test examples (delta method)."
