"""The paper's Figure 5: score against the size of each method's modules, a small panel for each.

A row of panels per data set (and model), a column per method; across a panel the values of the setting that the
study varies, equally far from each other. The value that the method has by default is marked. Panels have their
own scales: they compare sizes, not methods.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from peftbench.analysis.dots import Row, distinct
from peftbench.analysis.figures._runs import Gap, Study, by, merged, published_only, setting_key
from peftbench.analysis.figures._sheet import (
    BASE_DASH,
    Context,
    Sheet,
    cross,
    empty,
    heading,
    marker,
    patch,
    stroke,
)
from peftbench.analysis.outcomes import Estimate
from peftbench.analysis.style import (
    INK,
    MUTED,
    RULE,
    SURFACE,
    UNTUNED_TITLE,
    axis_title,
    method_title,
    variant_title,
)

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT, GAP_X, GAP_Y = 1.55, 0.5, 0.88
LEFT = 0.6
COLUMNS = 4
"""Most panels beside each other."""
NARROWEST = 2.0
"""Least range of scores that a panel shows, in points: noise shall not fill it."""
METHOD_AXES = ("location", "connector", "train_size")
"""Axes of every run that may be the one that varies, after the study's own settings."""


def varied(study: Study, method: str) -> list[str]:
    """The axes that vary within a method's runs and are no measure."""
    rows = [row for row in study.tuned if row["method"] == method]
    names = [name for name in (*study.further, *METHOD_AXES) if name != "measure"]
    return [name for name in names if len({row[name] for row in rows}) > 1]


def default_of(method: str, axis: str) -> str | None:
    """The value that a method's setting has by default; None where it has no such setting or none by default."""
    name = axis.rpartition(".")[2]
    try:
        config = import_module(f"peftbench.methods.{method}").Config
        value = getattr(config(), name, None)
    except (ModuleNotFoundError, AttributeError, TypeError):
        return None
    return None if value is None else str(value)


def draw(frame: "pl.DataFrame", context: Context) -> "Figure":
    """The figure of a study's long table."""
    study = Study(frame)
    axes_of = {method: varied(study, method) for method in study.methods}
    methods = [method for method in study.methods if axes_of[method]]
    if not methods:
        what = "varies no setting" if study.tuned else "has no tuned runs"
        return empty(context, f"the study {what}", study.gaps)
    names = ["model", "target", *(["measure"] if "measure" in study.further else [])]
    groups = by([row for row in study.tuned if row["method"] in methods], *names)
    most = max(len(_settings(study.tuned, method, axes_of[method])) for method in methods)
    width = min(2.3, max(1.55, 0.36 * most))
    columns = min(COLUMNS, len(methods))
    per_group = math.ceil(len(methods) / columns)
    sheet = Sheet(
        context.title,
        max(5.2, LEFT + columns * (width + GAP_X)),
        len(groups) * per_group * (HEIGHT + GAP_Y),
        _legend(study, methods, axes_of),
        [*_notes(study, methods), *study.gaps],
    )
    for group, (key, rows) in enumerate(groups.items()):
        for place, method in enumerate(methods):
            row, column = group * per_group + place // columns, place % columns
            axes = sheet.axes(LEFT + column * (width + GAP_X), 0.42 + row * (HEIGHT + GAP_Y), width, HEIGHT)
            here = [r for r in rows if r["method"] == method]
            model = study.model_title(str(key[0])) if len(study.models) > 1 else ""
            parts = [model, *(str(part) for part in key[2:] if part)]
            note = ", ".join([rows[0]["dataset_label"], *(part for part in parts if part)])
            heading(axes, method_title(method), note if place == 0 else rows[0]["dataset_label"])
            if column == 0:
                axes.set_ylabel("Score", fontsize=8)
            if not here:
                cross(axes, "not run")
                continue
            base = [r for r in study.untuned if all(r[name] == k for name, k in zip(names, key, strict=True))]
            _panel(axes, method, here, axes_of[method], study.colour(method), base)
    return sheet.figure


def _settings(rows: Sequence[Row], method: str, axes: Sequence[str]) -> list[tuple[Any, ...]]:
    """The settings of a method by size."""
    found = distinct(tuple(row[axis] for axis in axes) for row in rows if row["method"] == method)
    return sorted(found, key=lambda values: [setting_key(value) for value in values])


def _panel(
    panel: "Axes", method: str, rows: Sequence[Row], axes: Sequence[str], colour: str, base: Sequence[Row]
) -> None:
    settings = _settings(rows, method, axes)
    panel.set_xlim(-0.5, len(settings) - 0.5)
    single = len(axes) == 1
    labels = [
        str(values[0]) if single else variant_title(dict(zip(axes, values, strict=True)))
        for values in settings
    ]
    crowded = sum(map(len, labels)) > 26
    panel.set_xticks(range(len(settings)), labels, color=INK)
    if crowded:
        for label in panel.get_xticklabels():
            label.set(rotation=28, ha="right", rotation_mode="anchor", fontsize=6.8)
    title = axis_title(axes[0].rpartition(".")[2]) if single else ""
    panel.set_xlabel(title, fontsize=8, color=INK)
    panel.locator_params(axis="y", nbins=5)
    default = default_of(method, axes[0]) if single else None
    groups = by(rows, *axes)
    line: list[tuple[int, float]] = []
    seen: list[float] = []
    for x, values in enumerate(settings):
        if default is not None and setting_key(values[0]) == setting_key(default):
            panel.axvspan(x - 0.42, x + 0.42, color=RULE, alpha=0.6, linewidth=0, zorder=0)
        here = groups[values]
        number, published = merged(here), published_only(merged(here, "published"))
        if isinstance(number, Gap):
            panel.annotate(
                f"× {number.reason}",
                (x, 0.03),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=6.8,
                color=MUTED,
                ha="center",
                va="bottom",
            )
        else:
            line.append((x, number.value))
            seen += [number.low, number.high, number.value]
            panel.plot([x, x], [number.low, number.high], color=colour, linewidth=1.6, solid_capstyle="butt")
        if published is not None:
            seen.append(published)
            _marker(panel, x + 0.2, published, "D", INK, True)
    panel.plot(*zip(*line, strict=True), color=colour, linewidth=0.9, alpha=0.55) if line else None
    for x, value in line:
        _marker(panel, x, value, "o", colour, False)
    untuned = merged(base) if base else None
    if isinstance(untuned, Estimate):
        seen.append(untuned.value)
        panel.axhline(untuned.value, color=MUTED, linewidth=1.1, linestyle=BASE_DASH)
    if seen:
        low, high = min(seen), max(seen)
        room = max(0.08 * (high - low), (NARROWEST - (high - low)) / 2)
        panel.set_ylim(low - room, high + room)
    else:
        panel.set_yticks([])


def _marker(panel: "Axes", x: float, y: float, shape: str, colour: str, is_open: bool) -> None:
    panel.plot(
        [x],
        [y],
        marker=shape,
        markersize=4.6 if is_open else 5.4,
        markeredgewidth=1.2,
        markeredgecolor=colour,
        markerfacecolor=SURFACE if is_open else colour,
        linestyle="none",
        zorder=3,
    )


def _legend(study: Study, methods: Sequence[str], axes_of: dict[str, list[str]]) -> list[Any]:
    handles = [marker(INK, "score and its 95 % interval", line=True)]
    if any(row["published"] is not None for row in study.tuned):
        handles.append(marker(INK, "published", "D", is_open=True))
    if any(len(axes_of[m]) == 1 and default_of(m, axes_of[m][0]) for m in methods):
        handles.append(patch(RULE, "default"))
    if any(row["status"] == "ok" for row in study.untuned):
        handles.append(stroke(MUTED, UNTUNED_TITLE, 1.1, BASE_DASH))
    return handles


def _notes(study: Study, methods: Sequence[str]) -> list[str]:
    notes = ["Each panel has a scale of its own."] if len(methods) > 1 else []
    without = [method_title(method) for method in study.methods if method not in methods]
    if without:
        notes.append(f"Without a setting that varies: {', '.join(without)}.")
    return notes
