"""The efficiency table (Table 15 of the paper) for people and machines: CSV, Markdown and HTML."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup, escape

from peftbench.analysis.render import table_css
from peftbench.canonical import file_sha256
from peftbench.efficiency.explain import explain, fit_common, unit_of
from peftbench.efficiency.records import RunCosts
from peftbench.efficiency.table import Row, Workload
from peftbench.store import atomic_text

FINGERPRINT_FILES = ("efficiency.html.jinja", "table.css")
FOLDER = Path(__file__).parent
NOTHING = "–"
TITLE = "Efficiency: trainable parameters and FLOPs"
"""Of a table that has none of its own."""
METHOD_NOTE = (
    "Counted: matrix products and convolutions of the real graph on torch's meta device, two operations per "
    "multiply-add, one image per example; attention in full, without skipping its masked half. Formula: the "
    "paper's equations 5 and 6 for the same tokens."
)

RUNS_NOTE = (
    "Memory, steps and answers: measured in the runs of {study}, means over its data sets (memory: the highest), on "
    "{devices}. Score: their unweighted mean over the data sets, in brackets the published one."
)

RunKey = tuple[str, str, str, str]
"""Model, method, connector and location."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the runs of one row cost and what came of them."""

    costs: RunCosts | None
    score: float | None
    """Mean over the data sets; None where one is missing."""
    stderr: float | None
    published_score: float | None


class Heading(msgspec.Struct, frozen=True):
    """A column: its label, and a note below it with lines parted by " · "."""

    label: str
    note: str = ""


class Block(msgspec.Struct, frozen=True):
    """Rows under a common label; a cell that repeats the one above is empty."""

    label: str
    rows: list[list[str]]


class BlockTable(msgspec.Struct, frozen=True):
    """Text in rows and columns; the first ``keys`` columns name the row."""

    title: str
    headings: list[Heading]
    keys: int
    blocks: list[Block]


def write_efficiency(
    rows: Sequence[Row],
    workload: Workload,
    out_dir: Path,
    name: str,
    runs: Mapping[RunKey, Measured] | None = None,
    study: str = "",
    title: str = TITLE,
) -> dict[str, str]:
    """Write ``<name>.csv``, ``.md`` and ``.html`` to ``out_dir``; their sha256 by file name.

    ``runs`` are measured costs and scores of those rows that were run, of the study ``study``. ``rows`` is not empty.
    """
    tables = [costs_table(rows, title), *runs_table(rows, runs or {}), *published_table(rows)]
    paragraphs = [METHOD_NOTE, *runs_notes(runs or {}, study), *explain(rows, workload)]
    texts = {
        "csv": to_csv(rows, runs or {}),
        "md": _markdown(tables, paragraphs),
        "html": _page(tables, paragraphs),
    }
    paths = {kind: out_dir / f"{name}.{kind}" for kind in texts}
    for kind, path in paths.items():
        atomic_text(path, texts[kind])
    return {path.name: file_sha256(path) for path in paths.values()}


def key_of(row: Row) -> RunKey:
    """Where the run of a row is found in ``runs``."""
    return row.model, row.method, row.connector, row.location


def costs_table(rows: Sequence[Row], title: str = TITLE) -> BlockTable:
    """Parameters, and FLOPs by formula and counted."""
    whole, of_whole = unit_of([min(r.train_formula, r.train_measured, r.answer_measured) for r in rows])
    token, of_token = unit_of([min(r.token_formula, r.token_measured) for r in rows])
    columns: list[tuple[Heading, Callable[[Row], str]]] = [
        (Heading("Trainable"), lambda r: f"{r.trainable:,}"),
        (Heading("% of all", "paper"), _percent),
        (Heading("Training", f"formula · {of_whole}"), lambda r: f"{r.train_formula / whole:.2f}"),
        (Heading("Training", f"counted · {of_whole}"), lambda r: f"{r.train_measured / whole:.2f}"),
        (Heading("Ratio"), lambda r: f"{r.train_ratio:.2f}"),
        (Heading("Checkpointed", f"counted · {of_whole}"), lambda r: f"{r.train_recomputed / whole:.2f}"),
        (Heading("Token", f"formula · {of_token}"), lambda r: f"{r.token_formula / token:.2f}"),
        (Heading("Token", f"counted · {of_token}"), lambda r: f"{r.token_measured / token:.2f}"),
        (Heading("Ratio"), lambda r: f"{r.token_ratio:.2f}"),
        (Heading("Token", f"merged · {of_token}"), lambda r: _scaled(r.token_merged, token)),
        (Heading("Answer", f"counted · {of_whole}"), lambda r: f"{r.answer_measured / whole:.2f}"),
    ]
    headings = [Heading("Method"), Heading("Connector"), *(heading for heading, _ in columns)]
    return BlockTable(title, headings, 2, _blocks(rows, [text for _, text in columns]))


def runs_table(rows: Sequence[Row], runs: Mapping[RunKey, Measured]) -> list[BlockTable]:
    """What the runs cost and scored, beside what is published; no table without runs."""
    there = [row for row in rows if key_of(row) in runs]
    if not there:
        return []
    columns: list[tuple[Heading, Callable[[Row], str]]] = [
        (Heading("Training FLOPs", "published"), lambda r: _power(r.published_train)),
        (Heading("Inference FLOPs", "published"), lambda r: _power(r.published_inference)),
        (Heading("Memory", "peak · GiB"), lambda r: _scaled(_cost(runs, r, "memory"), 2**30)),
        (Heading("Step", "seconds"), lambda r: _scaled(_cost(runs, r, "step_seconds"), 1)),
        (Heading("Training", "examples / s"), lambda r: _scaled(_cost(runs, r, "examples_per_second"), 1)),
        (Heading("Answers", "per second"), lambda r: _scaled(_cost(runs, r, "answers_per_second"), 1)),
        (Heading("Score", "published"), lambda r: _score(runs.get(key_of(r)))),
    ]
    headings = [Heading("Method"), Heading("Connector"), *(heading for heading, _ in columns)]
    return [BlockTable("Measured in runs", headings, 2, _blocks(there, [text for _, text in columns]))]


def published_table(rows: Sequence[Row]) -> list[BlockTable]:
    """The published FLOPs, recomputed; no table where none are published."""
    fits = fit_common(rows)
    if not fits:
        return []
    found = {id(fit.row): fit for fit in fits}
    common = f"N_t = {fits[0].tokens:,.0f}"
    columns: list[tuple[Heading, Callable[[Row], str]]] = [
        (Heading("Training", "published"), lambda r: f"{r.published_train:.3e}"),
        (Heading("N_t", "implied by · equation 5"), lambda r: f"{r.implied_tokens:,.0f}"),
        (Heading("Inference", "published"), lambda r: f"{r.published_inference:.3e}"),
        (Heading("Equation 6", "at implied N_t"), lambda r: f"{r.inference_at_implied:.3e}"),
        (Heading("Deviation", "%"), lambda r: _signed(r.inference_deviation or 0, 3)),
        (Heading("Training", f"{common} · deviation, %"), lambda r: _signed(found[id(r)].train_deviation, 1)),
        (
            Heading("Inference", f"{common} · deviation, %"),
            lambda r: _signed(found[id(r)].inference_deviation, 1),
        ),
    ]
    headings = [Heading("Method"), Heading("Connector"), *(heading for heading, _ in columns)]
    blocks = _blocks([fit.row for fit in fits], [text for _, text in columns])
    return [BlockTable("Published FLOPs, recomputed", headings, 2, blocks)]


def _blocks(rows: Sequence[Row], texts: Sequence[Callable[[Row], str]]) -> list[Block]:
    blocks: list[Block] = []
    previous = ""
    for row in rows:
        if not blocks or blocks[-1].label != row.model_title:
            blocks.append(Block(row.model_title, []))
            previous = ""
        method = _method(row)
        blocks[-1].rows.append(
            ["" if method == previous else method, row.connector, *(text(row) for text in texts)]
        )
        previous = method
    return blocks


def _method(row: Row) -> str:
    extra = [row.location] if row.location != "default" else []
    extra += [f"{key} {value}" for key, value in msgspec.json.decode(row.settings).items() if _short(value)]
    return row.method_title + (f" ({', '.join(extra)})" if extra else "")


def _short(value: Any) -> bool:
    return isinstance(value, int | float | str | bool)


def _percent(row: Row) -> str:
    ours = f"{row.percent_published_vocabulary:.3f}"
    return ours if row.published_percent is None else f"{ours} ({row.published_percent:.3f})"


def _scaled(value: float | None, unit: float) -> str:
    return NOTHING if value is None else f"{value / unit:.2f}"


def _power(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3e}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _cost(runs: Mapping[RunKey, Measured], row: Row, name: str) -> float | None:
    run = runs.get(key_of(row))
    return getattr(run.costs, name) if run and run.costs else None


def _score(run: Measured | None) -> str:
    if run is None:
        return NOTHING
    ours = NOTHING if run.score is None else f"{run.score:.1f}"
    return ours if run.published_score is None else f"{ours} ({run.published_score:.1f})"


def runs_notes(runs: Mapping[RunKey, Measured], study: str) -> list[str]:
    """Where the measured columns come from; nothing without them."""
    known = [run.costs for run in runs.values() if run.costs]
    if not runs:
        return []
    devices = sorted({device for costs in known for device in costs.devices})
    note = RUNS_NOTE.format(study=study, devices=" and ".join(devices) or "no device yet")
    left_out = sum(costs.left_out for costs in known)
    return [note + (f" {left_out} runs on other devices are left out." if left_out else "")]


def to_csv(rows: Sequence[Row], runs: Mapping[RunKey, Measured]) -> str:
    """All fields of all rows, with plain numbers."""
    stream = io.StringIO()
    costs = ("memory", "step_seconds", "examples_per_second", "tokens_per_second", "answers_per_second")
    names = [*Row.__struct_fields__, "runs", "devices", "peak_memory", *costs[1:]]
    names += ["score", "score_stderr", "published_score"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        run = runs.get(key_of(row))
        found = run.costs if run else None
        measured: list[Any] = [None] * (2 + len(costs))
        if found:
            measured = [found.runs, ";".join(found.devices), *(getattr(found, name) for name in costs)]
        scores = [run.score, run.stderr, run.published_score] if run else [None] * 3
        writer.writerow([*msgspec.structs.astuple(row), *measured, *scores])
    return stream.getvalue()


def _markdown(tables: Sequence[BlockTable], paragraphs: Sequence[str]) -> str:
    lines = []
    for table in tables:
        heads = [" ".join([h.label, h.note.replace(" · ", " ")]).strip() for h in table.headings]
        lines += [f"# {table.title}", "", _line(["Model", *heads])]
        lines.append(_line([":--"] * (table.keys + 1) + ["--:"] * (len(heads) - table.keys)))
        for block in table.blocks:
            for at, row in enumerate(block.rows):
                lines.append(_line([block.label if at == 0 else "", *row]))
        lines.append("")
    return "\n".join([*lines, *("\n".join([text, ""]) for text in paragraphs)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("_", "\\_") for cell in cells) + " |"


def table_html(table: BlockTable) -> Markup:
    """The table alone, to stand in a page that has ``table_css``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template("efficiency.html.jinja").render(table=table))


def _page(tables: Sequence[BlockTable], paragraphs: Sequence[str]) -> str:
    body = "".join(f"<h2>{escape(table.title)}</h2>\n{table_html(table)}" for table in tables[1:])
    legend = "".join(f'<p class="legend">{escape(text)}</p>\n' for text in paragraphs)
    title = escape(tables[0].title)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{table_css()}</style>\n"
        f'<body class="alone">\n<h1>{title}</h1>\n{table_html(tables[0])}{body}{legend}</body>\n</html>\n'
    )
