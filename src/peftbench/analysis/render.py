"""A grid as Markdown, LaTeX and HTML: value ± standard error, the best marked, failures named."""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from peftbench.analysis.grid import NO_VALUE, Grid, GridCell, GridRow
from peftbench.analysis.summaries import cost_with_unit
from peftbench.views import PeopleCount

FINGERPRINT_FILES = ("table.html.jinja", "table.css")
FOLDER = Path(__file__).parent
SIDES = {"better": "▲", "worse": "▼", "": ""}
LEGEND = (
    "Value ± standard error over the test examples. Bold: the best of its block, and all values inside the "
    "best one's 95 % interval."
)
LEGEND_PAIRED = (
    "Value ± standard error over the test examples. Bold: the best of its block, and all that a paired bootstrap "
    "over the test examples does not tell from it (5 %, Holm-corrected; where scores per example cannot be "
    "compared: all inside the best one's 95 % interval)."
)
LEGEND_INTERVAL = (
    "95 % intervals: 1.96 standard errors to either side, or the bootstrap's; the CSV has them all."
)
LEGEND_SEEDS = "Values are means over seeds; their error holds the spread between seeds too."
LEGEND_BASE = "▲ / ▼: better / worse than the untuned base, with 95 % intervals that do not overlap. "
LEGEND_CHANGE = (
    "Changes are from the untuned base on the same test examples, their errors those of independent ones."
)
LEGEND_COST = "Costs are from the records of the runs: on a busy machine, seconds and memory are rough."
COSTS = {
    "parameters": "trainable parameters, the connector's too",
    "memory": "peak memory of training in GiB",
    "seconds": "seconds of training, mean over the row's runs",
}
LEGEND_PAPER = "Below: the published value and ours minus it."


def legend(grid: Grid) -> str:
    """What a reader has to know to read this table."""
    cells = [cell for row in grid.rows for cell in row.cells]
    parts = [LEGEND_PAIRED if grid.paired else LEGEND, LEGEND_INTERVAL]
    if any(row.untuned for row in grid.rows):
        parts.append(LEGEND_BASE.strip())
    if any(cell.estimate and cell.estimate.seeds > 1 for cell in cells):
        parts.append(LEGEND_SEEDS)
    further = [cell for row in grid.rows for cell in row.averages]
    if any(cell.change for cell in further):
        parts.append(LEGEND_CHANGE)
    if any(cell.cost for cell in further):
        parts.append(LEGEND_COST)
    if any(cell.published is not None for cell in cells):
        parts.append(LEGEND_PAPER)
    parts += grid.sources
    return " ".join(parts)


def problems(grid: Grid) -> list[str]:
    """One line for each cell without a value: where it is and why."""
    return [
        f"{' / '.join(row.labels)}, {column.label}: {cell.status}: {cell.reason}"
        for row in grid.rows
        for column, cell in zip(grid.columns, row.cells, strict=True)
        if cell.status not in ("ok", "absent")
    ]


def number(value: float, signed: bool = False) -> str:
    """One decimal, with a true minus sign; "0.0" has no sign."""
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    if float(text) == 0:
        text = "±0.0" if signed else "0.0"
    return text.replace("-", "−")


def to_markdown(grid: Grid) -> str:
    """A pipe table with the legend and the reasons of failures below it."""
    heads = [*grid.headings, *(c.label for c in grid.columns), *(c.label for c in grid.averages)]
    lines = [f"# {md_text(grid.title)}", "", _md_row(map(md_text, heads))]
    align = [":--"] * len(grid.headings) + ["--:"] * (len(heads) - len(grid.headings))
    lines.append(_md_row(align))
    for row in grid.rows:
        cells = [*map(_md_cell, row.cells), *(_md_cell(c, NO_VALUE) for c in row.averages)]
        lines.append(_md_row([*map(md_text, row.labels), *cells]))
    lines += ["", legend(grid)]
    if notes := _column_notes(grid):
        lines += ["", md_text(notes)]
    if found := problems(grid):
        lines += ["", "Without a value:", "", *(f"- {md_text(line)}" for line in found)]
    return "\n".join(lines) + "\n"


def people(counted: PeopleCount) -> str:
    """What people counted: "people 14/100 [8.5, 22.1] %"."""
    bounds = f"[{number(counted.low)}, {number(counted.high)}] %"
    return f"people {counted.hallucinated}/{counted.n} {bounds}"


def _column_notes(grid: Grid) -> str:
    """Metric and number of test examples of each column, where the columns are data sets."""
    notes = [f"{column.label}: {column.note}" for column in grid.columns if column.note]
    return "Columns: " + "; ".join(notes) + "." if notes else ""


def _md_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_cell(cell: GridCell, without: str = "") -> str:
    if cell.estimate is None:
        return NO_VALUE if cell.status == "absent" else without or cell.status
    if cell.cost:
        return cost_with_unit(cell.cost, cell.estimate.value)
    text = number(cell.estimate.value, signed=cell.change)
    if cell.best:
        text = f"**{text}**"
    text += f" ± {number(cell.estimate.stderr)}"
    if cell.against_base:
        text += f" {SIDES[cell.against_base]}"
    if cell.people:
        text += f"; {people(cell.people)}"
    if cell.published is not None and cell.difference is not None:
        text += f" (paper {number(cell.published)}, {number(cell.difference, signed=True)})"
    return text


def md_text(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    for character in "\\`*_|<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"$\cdot$",
    "−": r"$-$",
    "±": r"$\pm$",
    "–": "--",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
}


def tex_text(text: str) -> str:
    """Text that LaTeX takes literally, on one line."""
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def to_latex(grid: Grid) -> str:
    """A ``table`` with booktabs rules; needs the packages booktabs and amssymb."""
    heads = [*grid.headings, *(c.label for c in grid.columns), *(c.label for c in grid.averages)]
    spec = "l" * len(grid.headings) + "r" * (len(heads) - len(grid.headings))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex_text(' '.join(filter(None, (grid.title + '.', legend(grid), _column_notes(grid)))))}}}",
    ]
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", " & ".join(map(tex_text, heads)) + r" \\"]
    for block in grid.blocks:
        lines.append(r"\midrule")
        for row in block.rows:
            cells = [*map(_tex_cell, row.cells), *(_tex_cell(c, tex_text(NO_VALUE)) for c in row.averages)]
            lines.append(" & ".join([*map(tex_text, row.labels), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex_cell(cell: GridCell, without: str = "") -> str:
    if cell.estimate is None:
        if cell.status == "absent":
            return tex_text(NO_VALUE)
        return without or rf"\textit{{{cell.status}}}"
    if cell.cost:
        return tex_text(cost_with_unit(cell.cost, cell.estimate.value))
    text = tex_text(number(cell.estimate.value, signed=cell.change))
    if cell.best:
        text = rf"\textbf{{{text}}}"
    text += rf"\,{{\scriptsize$\pm$\,{tex_text(number(cell.estimate.stderr))}}}"
    if cell.against_base:
        text += rf"\,{{\tiny {tex_text(SIDES[cell.against_base])}}}"
    if cell.people:
        text += rf" {{\scriptsize {tex_text(people(cell.people))}}}"
    if cell.published is not None and cell.difference is not None:
        beside = f"{number(cell.published)}, {number(cell.difference, signed=True)}"
        text += rf" {{\scriptsize ({tex_text(beside)})}}"
    return text


def to_html(grid: Grid) -> Markup:
    """The table alone, to stand in a page that has ``table_css``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        number=number,
        cost_with_unit=cost_with_unit,
        sides=SIDES,
        tooltip=_tooltip,
        nothing=NO_VALUE,
        people=people,
    )
    template = environment.get_template("table.html.jinja")
    merged = [_merged(block.rows) for block in grid.blocks]
    return Markup(template.render(grid=grid, merged=merged, legend=legend(grid), problems=problems(grid)))


def _merged(rows: list[GridRow]) -> list[list[tuple[str, int]]]:
    """Per row its label cells (text, rows spanned) after the outermost; equal neighbours become one cell."""
    skip = 1 if len(rows[0].labels) > 1 else 0
    found: list[list[tuple[str, int]]] = [[] for _ in rows]
    for depth in range(skip, len(rows[0].labels)):
        start = 0
        for i in range(1, len(rows) + 1):
            if i < len(rows) and rows[i].labels[: depth + 1] == rows[start].labels[: depth + 1]:
                continue
            found[start].append((rows[start].labels[depth], i - start))
            start = i
    return found


def _tooltip(cell: GridCell) -> str:
    if cell.estimate is None:
        return cell.reason
    estimate = cell.estimate
    if cell.cost:
        return COSTS[cell.cost]
    text = f"95 % interval {number(estimate.low)} to {number(estimate.high)}, n = {estimate.n}"
    return text + (f", {estimate.seeds} seeds" if estimate.seeds > 1 else "")


def table_css() -> str:
    """Style of the table; colours come from the page's variables, light or dark."""
    return (FOLDER / "table.css").read_text(encoding="utf-8")


def standalone(grid: Grid) -> str:
    """The table as a page of its own that opens from disk."""
    from markupsafe import escape

    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(grid.title)}</title>\n<style>\n{table_css()}</style>\n"
        f'<body class="alone">\n<h1>{escape(grid.title)}</h1>\n{to_html(grid)}</body>\n</html>\n'
    )
