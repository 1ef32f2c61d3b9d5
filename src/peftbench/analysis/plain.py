"""A table of words and numbers that needs no layout: CSV, Markdown, LaTeX and HTML from one struct."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, field

from peftbench.analysis.render import md_text, table_css, tex_text
from peftbench.canonical import file_sha256
from peftbench.store import atomic_text


class PlainTable(Struct, frozen=True, kw_only=True):
    """Rows of texts under headings."""

    title: str
    head: list[str]
    rows: list[list[str]]
    right: list[int] = field(default_factory=list)
    """Positions of the columns that hold numbers."""
    notes: list[str] = field(default_factory=list)
    """Lines below the table."""


def write_plain(table: PlainTable, out_dir: Path, name: str) -> dict[str, str]:
    """Write ``<name>.csv``, ``.md``, ``.tex`` and ``.html``; their sha256 by file name.

    ``ValueError`` where a row has more or fewer cells than there are headings (a mistake of ours).
    """
    for row in table.rows:
        if len(row) != len(table.head):
            raise ValueError(f"{name}: a row of {len(row)} cells under {len(table.head)} headings: {row}")
    texts = {
        "csv": _csv(table),
        "md": _markdown(table),
        "tex": to_latex(table),
        "html": _html(table),
    }
    for suffix, text in texts.items():
        atomic_text(out_dir / f"{name}.{suffix}", text)
    return {f"{name}.{suffix}": file_sha256(out_dir / f"{name}.{suffix}") for suffix in texts}


def _csv(table: PlainTable) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return stream.getvalue()


def _markdown(table: PlainTable) -> str:
    align = ["--:" if i in table.right else ":--" for i in range(len(table.head))]
    lines = [f"# {md_text(table.title)}", "", _pipes(map(md_text, table.head)), _pipes(align)]
    lines += [_pipes(map(md_text, row)) for row in table.rows]
    for note in table.notes:
        lines += ["", md_text(note)]
    return "\n".join(lines) + "\n"


def _pipes(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"  # type: ignore[arg-type]


def to_latex(table: PlainTable) -> str:
    """A ``table`` with booktabs rules."""
    spec = "".join("r" if i in table.right else "l" for i in range(len(table.head)))
    caption = ". ".join([table.title, *(note.rstrip(".") for note in table.notes)])
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex_text(caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", _ampersands(table.head), r"\midrule"]
    lines += [_ampersands(row) for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(tex_text, cells)) + r" \\"


def _html(table: PlainTable) -> str:
    from markupsafe import escape

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = (' class="key"' if i not in table.right else "" for i in range(len(row)))
        return "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, row, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    notes = "".join(f'<p class="legend">{escape(note)}</p>\n' for note in table.notes)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(table.title)}</title>\n<style>\n{table_css()}</style>\n"
        f'<body class="alone">\n<h1>{escape(table.title)}</h1>\n<div class="table plain">\n<table>\n'
        f"<thead><tr>{cells('th', table.head)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
        f"{notes}</body>\n</html>\n"
    )
