"""The page "which method?": what each method is, what it costs, and what it achieves here, made from the results."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from peftbench.analysis.figures._frontier import frontier
from peftbench.analysis.grid import Block, Grid, GridCell, GridRow, build_grid
from peftbench.analysis.outcomes import read_outcomes
from peftbench.analysis.render import SIDES, number
from peftbench.analysis.style import UNTUNED, method_summary, method_title
from peftbench.analysis.summaries import cost_text, cost_with_unit
from peftbench.analysis.table import items_of
from peftbench.errors import UserError
from peftbench.graph import Plan, StudyPlan
from peftbench.planning.sizes import read_config_json, sizes_of
from peftbench.study import method_module
from peftbench.views import PlotSpec, TabulateSpec

LARGE = 1_000_000_000
"""Parameters below which a model is said to tell nothing about large ones."""


def which_page(plan: Plan, names: Sequence[str], counted_on: str, results: Path) -> str:
    """Markdown of the page, from the results of the studies ``names``: those with summaries and pairs of them.

    ``counted_on`` is the model whose trainable parameters are given by each method's formula at its own defaults.
    Raises ``UserError`` where a study has no summaries, or nothing of the studies has run.
    """
    studies = [plan.study(name) for name in names]
    for study in studies:
        if not _table(study).summaries or not _figure(study).pairs:
            raise UserError(
                f"config/studies/{study.name}.yaml: which: it has no summaries with pairs to choose by"
            )
    grids = {study.name: _grid(study, results) for study in studies}
    if not any(grid.count("ok") for grid in grids.values()):
        raise UserError(
            f"{results}: none of the runs of {', '.join(names)} is there: run snakemake {' '.join(names)}"
        )
    methods = list(dict.fromkeys(run.method for study in studies for run in study.runs))
    lines = ["# Which method?", "", *_origin(plan, studies, grids), ""]
    wins: dict[str, list[str]] = {}
    for study in studies:
        lines += _section(study, grids[study.name], wins)
    lines += ["## The methods", "", *_methods(plan, methods, counted_on, wins), ""]
    return "\n".join(lines)


def _table(study: StudyPlan) -> TabulateSpec:
    if study.tabulate is None:
        raise UserError(f"config/studies/{study.name}.yaml: which: it describes and has no runs")
    return msgspec.json.decode(study.tabulate.spec, type=TabulateSpec)


def _figure(study: StudyPlan) -> PlotSpec:
    assert study.plot is not None
    return msgspec.json.decode(study.plot.spec, type=PlotSpec)


def _grid(study: StudyPlan, results: Path) -> Grid:
    spec = _table(study)
    return build_grid(spec, read_outcomes(spec, results), items_of(results), results)


def _origin(plan: Plan, studies: Sequence[StudyPlan], grids: dict[str, Grid]) -> list[str]:
    models = {info.name: info for study in studies for info in _table(study).models}
    titles = ", ".join(info.title for info in models.values())
    seeds = {run.seed for study in studies for run in study.runs}
    sizes = {run.train_size for study in studies for run in study.runs if run.method != UNTUNED}
    examples = " or ".join("all" if size == "full" else f"{size:,}" for size in sorted(sizes, key=str))
    there = sum(grid.count("ok") for grid in grids.values())
    gone = sum(grid.count("failed") + grid.count("missing") for grid in grids.values())
    lines = [
        "Made by `peftbench which`: do not edit. It is built from the results of "
        f"{_joined(f'`{study.name}`' for study in studies)}: model {titles}, {examples} training "
        f"examples per data set, {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}; {there} scored cells"
        + (f", {gone} without a score." if gone else "."),
    ]
    small = [info.title for name, info in models.items() if _parameters(plan, name) < LARGE]
    if small:
        lines += [
            "",
            f"**{_joined(small)} is a toy.** What these numbers say is that the comparison runs from data to page, and "
            "how to read it. They say nothing about models of billions of parameters: run the studies on the model "
            "that you want to tune, and make this page again.",
        ]
    return lines


def _parameters(plan: Plan, model: str) -> int:
    """Parameters of a model as far as they are known; large where they are not."""
    config = plan.settings.model(model, "which")
    if config.parameters:
        return sum(config.parameters.values())
    found = sizes_of(config.names, {}, _architecture(plan, model))
    return found.total if found.source == "architecture" else LARGE


def _architecture(plan: Plan, model: str) -> dict[str, Any]:
    config = plan.settings.model(model, "which")
    path = plan.settings.root / "config/architectures" / f"{config.architecture}.json"
    return read_config_json(path) if config.architecture else {}


def _section(study: StudyPlan, grid: Grid, wins: dict[str, list[str]]) -> list[str]:
    """A study's part of the page; ``wins`` gets what each of its rows is good at, by the row's name."""
    figure = _figure(study)
    lines = [f"## {grid.title}", ""]
    for block in grid.blocks:
        if len(grid.blocks) > 1:
            lines += [f"### {block.label}", ""]
        lines += [f"- {line}" for line in _advice(grid, block, figure.pairs, study.name, wins)]
        lines += ["", *_rows(grid, block), ""]
    lines += [
        "± standard error over the test examples. Bold: the best, and all that are not told from it. "
        "▲ / ▼: better / worse than the untuned base, 95 % intervals apart. Time and memory are of a busy machine.",
        "",
    ]
    return lines


def _advice(
    grid: Grid, block: Block, pairs: Sequence[tuple[str, str]], study: str, wins: dict[str, list[str]]
) -> list[str]:
    """What to choose, one sentence for each score and each pair of summaries."""
    names = {column.key: place for place, column in enumerate(grid.averages)}
    tuned = [row for row in block.rows if not row.untuned]
    lines = []
    for up in dict.fromkeys(up for _, up in pairs):
        lines += _best(grid, tuned, names[up])
        for row in tuned:
            if row.averages[names[up]].best:
                title = grid.averages[names[up]].label
                _add(wins, row.name, f"`{study}`: best in {_lower(title)}, or not told from it")
    for across, up in pairs:
        known = [
            (row, x, y)
            for row in tuned
            if (x := row.averages[names[across]]).estimate and (y := row.averages[names[up]]).estimate
        ]
        if len(known) < 2:
            continue
        points = [(x.estimate.value, y.estimate.value) for _, x, y in known]  # type: ignore[union-attr]
        on = frontier(points, known[0][1].higher_is_better, known[0][2].higher_is_better)
        found = sorted(
            (one for one, best in zip(known, on, strict=True) if best),
            key=lambda one: one[1].estimate.value,  # type: ignore[union-attr]
        )
        x_title, y_title = grid.averages[names[across]].label, grid.averages[names[up]].label
        for row, *_ in found:
            _add(wins, row.name, f"`{study}`: on the frontier of {_lower(x_title)} and {_lower(y_title)}")
        shown = _joined(f"{row.name} ({_value(x)}; {_value(y)})" for row, x, y in found)
        lines.append(
            f"**{x_title} and {_lower(y_title)} together:** no other method is at least as good in "
            f"both as {shown}. (By the values as they are, without their errors.)"
        )
    return lines


def _add(wins: dict[str, list[str]], name: str, text: str) -> None:
    known = wins.setdefault(name, [])
    if text not in known:
        known.append(text)


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _best(grid: Grid, rows: Sequence[GridRow], place: int) -> list[str]:
    title = grid.averages[place].label
    scored = [(row, cell) for row in rows if (cell := row.averages[place]).estimate]
    if not scored:
        return [f"**{title}:** nothing has run."]
    sign = 1 if scored[0][1].higher_is_better else -1
    scored.sort(key=lambda pair: -sign * pair[1].estimate.value)  # type: ignore[union-attr]
    (best, cell), *others = scored
    ties = [row.name for row, other in others if other.best]
    line = f"**{title}:** best is {best.name} with {_value(cell)}"
    if cell.against_base:
        line += f", {cell.against_base} than the untuned base"
    if ties:
        line += f"; not told from it by these test examples: {_joined(ties)}"
    elif others:
        line += ", told from every other"
    line += "."
    level = [
        row.name for row, other in scored if not other.against_base and any(r.untuned for r in grid.rows)
    ]
    if level:
        line += f" Not told from the untuned base: {_joined(level)}."
    return [line]


def _value(cell: GridCell) -> str:
    assert cell.estimate is not None
    if cell.cost:
        return cost_with_unit(cell.cost, cell.estimate.value)
    return f"{number(cell.estimate.value, signed=cell.change)} ± {number(cell.estimate.stderr)}"


def _rows(grid: Grid, block: Block) -> list[str]:
    heads = ["method", *(column.label for column in grid.averages)]
    lines = [_line(heads), _line([":--"] + ["--:"] * len(grid.averages))]
    for row in block.rows:
        cells = []
        for cell in row.averages:
            if cell.estimate is None:
                cells.append("–")
                continue
            text = f"**{_value(cell)}**" if cell.best and not cell.cost else _value(cell)
            cells.append(f"{text} {SIDES[cell.against_base]}".strip())
        lines.append(_line([row.name or row.labels[-1], *cells]))
    return lines


def _methods(plan: Plan, methods: Sequence[str], model: str, wins: dict[str, list[str]]) -> list[str]:
    config = plan.settings.model(model, "which: --count-on")
    dims = sizes_of(config.names, config.parameters, _architecture(plan, model)).dims
    lines = [
        f"Trainable parameters are those that a method's formula gives for {config.title} with the method's own "
        "defaults, the connector's not counted. Merged: the tuned model is as fast as the base and as large.",
        "",
        _line(["method", "what it is", "trainable", "merges", "places", "good at, here"]),
        _line([":--", ":--", "--:", ":--", ":--", ":--"]),
    ]
    for name in methods:
        if name == UNTUNED:
            continue
        module = method_module(name)
        count = module.trainable_count(dims, module.Config(), "default")
        what = method_summary(name).replace("``", "`").replace("|", "\\|")
        places = ", ".join(sorted(module.LOCATIONS, key=lambda place: place != module.DEFAULT_LOCATION))
        lines.append(
            _line(
                [
                    f"{method_title(name)} (`{name}`)",
                    what,
                    cost_text("parameters", count) if count else "–",
                    "yes" if module.MERGEABLE else "no",
                    places,
                    "; ".join(wins.get(method_title(name), [])) or "–",
                ]
            )
        )
    return lines


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _joined(words: Iterable[str]) -> str:
    """A, b and c."""
    found = list(words)
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + " and " + found[-1]
