"""The sheet that a figure is drawn on: title, legend and notes around a body measured in inches."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from peftbench.analysis.style import INK, MUTED, RULE, SURFACE
from peftbench.views import PlotSpec, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGE = 0.15
"""Inches around everything."""
TITLE, LEGEND, NOTE = 11.5, 8.0, 7.5
"""Font sizes in points."""
CHARACTER = 0.0075
"""Width of a character of DejaVu Sans in inches per point of its size, a little above the mean; bold: ``BOLD``."""
BOLD = 1.12
LEGEND_ROW, NOTE_ROW, TITLE_ROW = 0.19, 0.15, 0.21
WHITE_BOX = {"facecolor": SURFACE, "edgecolor": "none", "pad": 1.2}
BASE_DASH = (0, (4, 2))
"""Line style of the untuned model."""


class Context(Struct, frozen=True, kw_only=True):
    """What a figure is told besides its table."""

    title: str
    results: Path
    """The results folder, which the table's column ``scores`` is relative to."""
    spec: PlotSpec | None = None
    """All that the figure is asked for; a kind that needs more than the table looks there."""
    columns: str = "dataset"
    """The axis across the table."""
    summaries: dict[str, Summary] = {}
    """The table's further columns by name."""
    labels: dict[str, str] = {}
    """What data sets are called."""
    pairs: list[tuple[str, str]] = []
    """Summaries of each panel, across and up, where the kind of figure takes them."""


class Sheet:
    """A figure with a head and a foot; ``axes`` places panels in the body between them.

    Sizes and places are in inches, places from the upper left corner of the body.
    """

    def __init__(
        self,
        title: str,
        width: float,
        body: float,
        legend: Sequence[Any] = (),
        notes: Sequence[str] = (),
    ) -> None:
        from matplotlib.figure import Figure

        titles = wrapped(title, width, TITLE * BOLD)
        footer = [line for note in notes for line in wrapped(note, width, NOTE)]
        columns = _columns(legend, width)
        rows = -(-len(legend) // columns) if legend else 0
        self.top = 0.2 + TITLE_ROW * len(titles) + LEGEND_ROW * rows
        self.width = width
        self.height = self.top + body + (0.12 + NOTE_ROW * len(footer) if footer else 0.0) + 0.1
        self.figure: Figure = Figure(figsize=(width, self.height), facecolor=SURFACE)
        self.text(
            EDGE, 0.15 - self.top, "\n".join(titles), fontsize=TITLE, fontweight="bold", linespacing=1.25
        )
        if legend:
            place = (EDGE / width, 1 - (0.2 + TITLE_ROW * len(titles)) / self.height)
            self._legend(legend, columns, place)
        if footer:
            self.text(EDGE, body + 0.12, "\n".join(footer), fontsize=NOTE, color=MUTED, linespacing=1.35)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is there, unless its style says otherwise."""
        self.figure.text(*self.place(x, y), text, **({"va": "top"} | style))

    def axes(self, x: float, y: float, width: float, height: float, sharey: "Axes | None" = None) -> "Axes":
        """An empty panel in the house's style: no frame, a grid along the values (y) only."""
        left, top = self.place(x, y)
        area = (left, top - height / self.height, width / self.width, height / self.height)
        axes: Axes = self.figure.add_axes(area, sharey=sharey)
        axes.set_facecolor("none")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, labelsize=7.5)
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        return axes

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A place on the sheet as matplotlib counts: fractions from the lower left corner."""
        return x / self.width, 1 - (self.top + y) / self.height

    def _legend(self, handles: Sequence[Any], columns: int, place: tuple[float, float]) -> None:
        legend = self.figure.legend(
            handles=list(handles),
            loc="upper left",
            bbox_to_anchor=place,
            ncols=columns,
            frameon=False,
            fontsize=LEGEND,
            handlelength=2.0,
            columnspacing=1.6,
            labelspacing=0.45,
            borderpad=0,
            borderaxespad=0,
        )
        legend.set_in_layout(False)


def heading(axes: "Axes", title: str, note: str = "", average: bool = False) -> None:
    """The title of a panel, with a line of lesser text under it."""
    weight = "bold" if average else "normal"
    above = (0, 14) if note else (0, 5)
    axes.annotate(title, (0, 1), above, "axes fraction", "offset points", fontsize=9.5, fontweight=weight)
    if note:
        axes.annotate(note, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=7.2, color=MUTED)


def cross(axes: "Axes", text: str) -> None:
    """The reason why a panel is empty, in its middle."""
    axes.annotate(
        f"× {text}", (0.5, 0.5), xycoords="axes fraction", fontsize=7.5, color=MUTED, ha="center", va="center"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def empty(context: Context, reason: str, notes: Sequence[str] = ()) -> "Figure":
    """The figure where there is nothing to show: it says why."""
    lines = wrapped(f"Nothing to show: {reason}.", 6.0, 9)
    sheet = Sheet(context.title, 6.0, 0.1 + 0.18 * len(lines), notes=notes)
    sheet.text(EDGE, 0.0, "\n".join(lines), fontsize=9, linespacing=1.3)
    return sheet.figure


def marker(colour: str, label: str, shape: str = "o", is_open: bool = False, line: bool = False) -> Any:
    """An entry of the legend: a marker, on a line where it has an interval."""
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color=colour,
        marker=shape,
        markersize=5.2,
        markeredgewidth=1.3,
        markerfacecolor=SURFACE if is_open else colour,
        linewidth=1.4,
        linestyle="-" if line else "none",
        label=label,
    )


def stroke(colour: str, label: str, width: float = 1.4, style: Any = "-", alpha: float = 1.0) -> Any:
    """An entry of the legend: a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=width, linestyle=style, alpha=alpha, label=label)


def patch(colour: str, label: str, alpha: float = 1.0) -> Any:
    """An entry of the legend: an area."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="none", alpha=alpha, label=label)


def mixed(colour: str, other: str, share: float) -> str:
    """``colour`` with a share (0 to 1) of ``other``."""
    pairs = zip(_parts(colour), _parts(other), strict=True)
    return "#" + "".join(f"{round((1 - share) * a + share * b):02x}" for a, b in pairs)


def ramp(colour: str, count: int) -> list[str]:
    """``count`` shades of a colour from light to dark, for settings that have an order."""
    if count == 1:
        return [colour]
    steps = [-0.55 + 1.1 * i / (count - 1) for i in range(count)]
    return [mixed(colour, SURFACE if step < 0 else INK, abs(step)) for step in steps]


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of text of a size (points) that fit into a width (inches), edges left free."""
    return textwrap.wrap(text, max(12, int((width - 2 * EDGE) / (CHARACTER * size)))) or [""]


def _columns(legend: Sequence[Any], width: float) -> int:
    """Columns of a legend that fit beside each other; as few rows as there must be, then filled evenly."""
    if not legend:
        return 1
    entry = max(len(handle.get_label()) for handle in legend) * CHARACTER * LEGEND + 0.55
    most = max(1, min(len(legend), int((width - 2 * EDGE) / entry)))
    rows = -(-len(legend) // most)
    return -(-len(legend) // rows)
