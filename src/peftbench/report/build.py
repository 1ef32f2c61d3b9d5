"""The page of a study: one HTML file that opens from disk, with everything in it and nothing to fetch."""

import re
import unicodedata
from pathlib import Path
from typing import Any

from markupsafe import Markup

from peftbench.analysis.gallery import CHOICES, Card, gallery
from peftbench.analysis.grid import Block, Grid, build_grid
from peftbench.analysis.lines import Line, first_seeds, read_lines
from peftbench.analysis.outcomes import read_outcomes
from peftbench.analysis.render import number, table_css, to_html
from peftbench.analysis.style import (
    DASHES,
    INK,
    MUTED,
    RULE,
    SERIES,
    SERIES_DARK,
    SURFACE,
    colour_index,
    method_title,
)
from peftbench.analysis.table import items_of
from peftbench.canonical import file_sha256
from peftbench.errors import UserError
from peftbench.report.costs import costs, origin, summaries
from peftbench.report.curves import CurvePanel, curve_panel
from peftbench.report.pictures import picture_address
from peftbench.store import atomic_text
from peftbench.views import ReportSpec

FINGERPRINT_FILES = ("page.html.jinja", "page.css")
FOLDER = Path(__file__).parent
LONG = 180
"""Answers of more characters fold away behind their beginning."""
LOSSES = "losses.parquet"
"""What the predict stage leaves where nothing is generated: there are no answers to show."""
LARGEST = 1.6
"""Pixels per point that a figure is shown with at most."""


def build_report(spec: ReportSpec, results: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``<study>.html`` to ``out_dir``; return facts for the marker.

    Reads the scores, answers, logs and records of the study's runs, the prepared data with its pictures, and
    ``figures/<study>.svg``. Runs that failed or are missing are said so. Raises ``UserError`` where a file
    that should be there is not, or is damaged.
    """
    table = spec.table
    outcomes = read_outcomes(table, results)
    grid = build_grid(table, outcomes, items_of(results), results)
    lines = read_lines(table, outcomes, results)
    shown = first_seeds(lines)
    titles = {model.name: model.title for model in table.models}
    labels = {dataset.name: dataset.label for dataset in table.datasets}
    cards: list[tuple[str, str, str, list[Card]]] = []
    for dataset in table.datasets:
        mine = [
            line
            for line in shown
            if line.outcome.cell.target == dataset.name and not (line.predictions / LOSSES).is_file()
        ]
        found = gallery(mine, titles, results, spec.gallery, spec.choose)
        if found:
            cards.append((dataset.label, dataset.title, dataset.metric, found))
    page = _environment().get_template("page.html.jinja")
    html = page.render(
        spec=spec,
        css=Markup(table_css() + _variables() + (FOLDER / "page.css").read_text(encoding="utf-8")),
        grid=grid,
        table=to_html(grid),
        headlines=[line for block in grid.blocks if (line := headline(grid, block))],
        figure=_figure(results / f"figures/{spec.study}.svg"),
        curves=_curves(shown, titles, labels),
        key=_key(lines),
        gallery=cards,
        chosen=CHOICES[spec.choose],
        address=lambda sha256: picture_address(results / "images", sha256),
        variants=list(dict.fromkeys(line.variant for line in lines if not line.untuned)),
        summaries=summaries(lines),
        costs=costs(lines, titles),
        origin=origin(lines, titles, labels),
        seeds=len({line.outcome.cell.seed for line in lines if not line.untuned}),
    )
    path = out_dir / f"{spec.study}.html"
    atomic_text(path, html)
    return {
        "cells": {status: grid.count(status) for status in ("ok", "failed", "missing")},
        "pictures": sum(len(found) for *_, found in cards),
        "outputs": {path.name: file_sha256(path)},
    }


def headline(grid: Grid, block: Block) -> dict[str, Any] | None:
    """The answer in one sentence: which row of a block is best on average, and which ties with it."""
    place = next((i for i, column in enumerate(grid.averages) if column.key == "all"), None)
    if place is None:
        return None
    scored = [(row, cell) for row in block.rows if (cell := row.averages[place]).estimate is not None]
    marked = [(row, cell) for row, cell in scored if cell.best]
    if not marked:
        return None
    sign = 1 if marked[0][1].higher_is_better else -1
    marked.sort(key=lambda pair: -sign * pair[1].estimate.value)  # type: ignore[union-attr]
    best, cell = marked[0]
    base = next((mean for row, mean in scored if row.untuned), None)
    return {
        "block": block.label,
        "best": best.name,
        "estimate": cell.estimate,
        "ties": [row.name for row, _ in marked[1:]],
        "base": base.estimate if base is not None and not best.untuned else None,
        "columns": len(grid.columns),
        "left_out": len(block.rows) - len(scored),
    }


def _figure(path: Path) -> Markup:
    """The figure's SVG with the page's colours in place of its own."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: run snakemake to make it") from None
    start = text.find("<svg")
    if start < 0:
        raise UserError(f"{path}: not an SVG file: delete it and run again")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[start:], flags=re.DOTALL)
    named = {INK: "--ink", MUTED: "--muted", RULE: "--rule", SURFACE: "--surface"}
    named |= {colour: f"--m{i}" for i, colour in enumerate(SERIES)}
    for colour, name in named.items():
        text = re.sub(re.escape(colour), f"var({name})", text, flags=re.IGNORECASE)
    size = re.match(r'<svg[^>]*? width="([0-9.]+)pt"', text)
    limit = f' style="max-width:{float(size[1]) * LARGEST:.0f}px"' if size else ""  # small ones stay small
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1{limit}", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text)


def _curves(
    lines: list[Line], titles: dict[str, str], labels: dict[str, str]
) -> list[tuple[str, list[CurvePanel]]]:
    """Panels by model; the model is not named where there is one."""
    groups: dict[str, dict[str, list[Line]]] = {}
    drawn = set()  # a run that is tested on several sets, or at several epochs, was trained once
    for line in lines:
        cell = line.outcome.cell
        if line.run not in drawn:
            drawn.add(line.run)
            groups.setdefault(cell.model, {}).setdefault(cell.dataset, []).append(line)
    return [
        (
            titles[model] if len(groups) > 1 else "",
            [curve_panel(labels[dataset], group) for dataset, group in sets.items()],
        )
        for model, sets in groups.items()
    ]


def _key(lines: list[Line]) -> dict[str, list[tuple[str, str]]]:
    """What the colours and dashes of the curves mean."""
    tuned = [line for line in lines if not line.untuned]
    methods = {line.method: f"var(--m{colour_index(line.position)})" for line in tuned}
    variants = {line.variant: DASHES[line.kind % len(DASHES)] for line in tuned if line.variant}
    return {
        "methods": [(method_title(name), colour) for name, colour in methods.items()],
        "variants": list(variants.items()),
    }


def _variables() -> str:
    light = " ".join(f"--m{i}: {colour};" for i, colour in enumerate(SERIES))
    dark = " ".join(f"--m{i}: {colour};" for i, colour in enumerate(SERIES_DARK))
    return (
        f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{\n  :root {{ {dark} }}\n}}\n"
        f"@media print {{\n  :root {{ {light} }}\n}}\n"
    )


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, begins=begins, amount=amount, number=number)
    environment.globals.update(long=LONG, letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ", colour_index=colour_index)
    return environment


def visible(text: str) -> str:
    """Verbatim text without what a page cannot hold: control characters become a visible mark."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text
    )


def begins(text: str) -> str:
    """The beginning of a long text."""
    return text[: LONG - 20].rstrip() + " …"


def amount(value: float | None, digits: int = 3) -> str:
    """A count or rate with separators of thousands; "–" where it is not known."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{round(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"
