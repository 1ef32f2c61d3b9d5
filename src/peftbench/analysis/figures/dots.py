"""A panel per data set, a line per method, a dot with its 95 % interval per variant."""

import math
from typing import TYPE_CHECKING, Any

from peftbench.analysis.dots import Dot, Panel, figure_data
from peftbench.analysis.dots import Figure as Data
from peftbench.analysis.figures._sheet import EDGE, Context, Sheet
from peftbench.analysis.style import (
    INK,
    MUTED,
    RULE,
    SERIES,
    SURFACE,
    UNTUNED_TITLE,
    colour_index,
    method_title,
)

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
"""Panels beside each other."""
PANEL_WIDTH = 2.0
DOT_HEIGHT = 0.165
"""Inches between the dots of one method."""
MARKERS = ("o", "o", "s", "s", "D", "D", "^", "^", "v", "v")
"""By variant; every second one is drawn open."""


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table."""
    data = figure_data(frame)
    per_model = max((_rows(data, model) for model in data.models), default=1)
    columns = min(COLUMNS, max((_count(data, model) for model in data.models), default=1))
    body = max(1.0, _span(data) * DOT_HEIGHT)
    panel_height = body + 0.8
    gap = 0.3 if len(data.models) > 1 else 0.0
    labels = max((len(method_title(name)) for name in data.methods), default=0)
    left = 0.35 + 0.075 * labels
    width = max(6.0, left + columns * PANEL_WIDTH + 0.15)
    height = len(data.models) * (per_model * panel_height + gap)
    sheet = Sheet(context.title, width, height, _legend(data))
    top = 0.05
    for model in data.models:
        if len(data.models) > 1:
            sheet.text(EDGE, top + 0.08, model, fontsize=10, fontweight="bold")
            top += gap
        panels = [panel for panel in data.panels if panel.model == model]
        for place, panel in enumerate(panels):
            row, column = divmod(place, columns)
            x = left + column * PANEL_WIDTH
            y = top + row * panel_height + 0.42
            _panel(sheet.axes(x, y, PANEL_WIDTH - 0.2, body), panel, data, named=column == 0)
        top += per_model * panel_height
    return sheet.figure


def _count(data: Data, model: str) -> int:
    return sum(panel.model == model for panel in data.panels)


def _rows(data: Data, model: str) -> int:
    return math.ceil(_count(data, model) / COLUMNS)


def _span(data: Data) -> float:
    """Height of a panel in dots: each method has its variants and a gap of one."""
    return len(data.methods) * (len(data.variants) + 0.9)


def _positions(data: Data) -> dict[tuple[str, str], float]:
    step = len(data.variants) + 0.9
    return {
        (method, variant): i * step + k + 0.95
        for i, method in enumerate(data.methods)
        for k, variant in enumerate(data.variants)
    }


def _panel(axes: "Axes", panel: Panel, data: Data, named: bool) -> None:
    step = len(data.variants) + 0.9
    axes.set_ylim(_span(data), 0)
    low, high = _limits(panel)
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    for i in range(1, len(data.methods)):
        axes.axhline(i * step, color=RULE, linewidth=0.5)
    centres = [(i + 0.5) * step for i in range(len(data.methods))]
    axes.set_yticks(centres, [method_title(name) for name in data.methods] if named else [""] * len(centres))
    for label in axes.get_yticklabels():
        label.set_fontsize(9)
    weight = "bold" if panel.average else "normal"
    axes.annotate(
        panel.title, (0, 1), (0, 14), "axes fraction", "offset points", fontsize=9.5, fontweight=weight
    )
    axes.annotate(panel.note, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=7.2, color=MUTED)
    if panel.base is not None:
        axes.axvspan(panel.base.low, panel.base.high, color=RULE, alpha=0.55, linewidth=0)
        axes.axvline(panel.base.value, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)))
    positions = _positions(data)
    for dot in panel.dots:
        _dot(axes, dot, positions[dot.method, dot.variant], data, low)


def _dot(axes: "Axes", dot: Dot, y: float, data: Data, low: float) -> None:
    colour = SERIES[colour_index(data.methods.index(dot.method))]
    if dot.estimate is None:
        axes.annotate(
            f"× {dot.status}",
            (low, y),
            (2, 0),
            "data",
            "offset points",
            fontsize=6.8,
            color=MUTED,
            va="center",
            bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1.2},
        )
        return
    kind = data.variants.index(dot.variant)
    estimate = dot.estimate
    axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
    _marker(axes, estimate.value, y, kind, colour)


def _marker(axes: "Axes", x: float, y: float, kind: int, colour: str) -> None:
    axes.plot(
        [x],
        [y],
        marker=MARKERS[kind % len(MARKERS)],
        markersize=5.2,
        markeredgewidth=1.4,
        markeredgecolor=colour,
        markerfacecolor=SURFACE if kind % 2 else colour,
        linestyle="none",
        clip_on=False,
    )


def _limits(panel: Panel) -> tuple[float, float]:
    """Range of a panel: all intervals with some room, never narrower than two points."""
    estimates = [dot.estimate for dot in panel.dots if dot.estimate]
    if panel.base is not None:
        estimates.append(panel.base)
    if not estimates:
        return 0.0, 100.0
    low = min(min(e.low, e.value) for e in estimates)
    high = max(max(e.high, e.value) for e in estimates)
    room = max(0.06 * (high - low), (2.0 - (high - low)) / 2, 0.0)
    return low - room, high + room


def _legend(data: Data) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    if len(data.variants) > 1:
        for kind, variant in enumerate(data.variants):
            handles.append(
                Line2D(
                    [],
                    [],
                    color=INK,
                    marker=MARKERS[kind % len(MARKERS)],
                    markersize=5.2,
                    markeredgewidth=1.4,
                    markerfacecolor=SURFACE if kind % 2 else INK,
                    linewidth=1.4,
                    label=variant or "as it is",
                )
            )
    else:
        handles.append(Line2D([], [], color=INK, marker="o", markersize=5.2, linewidth=1.4, label="score"))
    handles.append(Line2D([], [], color=INK, linewidth=1.4, label="95 % interval"))
    if any(panel.base for panel in data.panels):
        handles.append(Line2D([], [], color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), label=UNTUNED_TITLE))
    return handles
