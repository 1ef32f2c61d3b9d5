"""Trainable parameters and operations of each method (Table 15 of the paper), from the real architectures.

For these nothing is loaded or run: models are built on torch's meta device from their configuration at full size. Where
the study names another one whose runs to look at (``runs_of``), the memory, time and scores of these stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.analysis.plain import PlainTable, to_latex
from peftbench.errors import UserError
from peftbench.store import atomic_text
from peftbench.views import DescribeSpec

if TYPE_CHECKING:
    from peftbench.analysis.efficiency import BlockTable, Measured, RunKey
    from peftbench.efficiency.table import Row

NEEDS = ""
TEXT, ANSWER = 70, 5
"""Tokens of a visual question's prompt besides the picture's, and of its answer: declared, not measured."""


def write(spec: DescribeSpec, results: Path, out_dir: Path) -> dict[str, str]:
    """Write the table; sha256 by file name. ``UserError`` where no model of the study has known sizes."""
    from peftbench.analysis.efficiency import costs_table, runs_notes, runs_table, write_efficiency
    from peftbench.canonical import file_sha256
    from peftbench.efficiency.parameters import EfficiencyModel, Setting
    from peftbench.efficiency.table import Cell, Workload, efficiency_rows, read_published

    cells = []
    for model in spec.models:
        if not model.architecture:
            continue
        sizes = EfficiencyModel(
            name=model.name,
            title=model.title,
            stands_for=model.stands_for,
            names=model.names,
            architecture=model.architecture,
            vocabulary=model.vocabulary,
        )
        cells += [
            Cell(model=sizes, setting=Setting(method=method, settings=settings, connector=connector))
            for method, settings in model.methods.items()
            for connector in ("frozen", "tuned")
        ]
    if not cells:
        raise UserError(
            f"config/studies/{spec.study}.yaml: no model of it has an 'architecture' (config/architectures) to count in"
        )
    workload = Workload(title="a visual question with a short answer", text=TEXT, answer=ANSWER)
    published = read_published(spec.published_rows) if spec.published_rows else None
    rows = efficiency_rows(cells, workload, published)
    runs = _measured(spec, rows, results)
    study = spec.runs.title if spec.runs else ""
    outputs = write_efficiency(rows, workload, out_dir, spec.study, runs, study, spec.title)
    tables = [costs_table(rows, spec.title), *runs_table(rows, runs)]
    notes = [*([spec.note] if spec.note else []), *runs_notes(runs, study)]
    path = out_dir / f"{spec.study}.tex"
    atomic_text(path, "\n".join(to_latex(_plain(table, notes)) for table in tables))
    return {**outputs, path.name: file_sha256(path)}


def _plain(table: BlockTable, notes: Sequence[str]) -> PlainTable:
    return PlainTable(
        title=table.title,
        head=["Model", *(f"{h.label} {h.note}".replace(" · ", " ").strip() for h in table.headings)],
        rows=[[block.label, *row] for block in table.blocks for row in block.rows],
        right=list(range(table.keys + 1, len(table.headings) + 1)),
        notes=list(notes),
    )


def _measured(spec: DescribeSpec, rows: Sequence[Row], results: Path) -> dict[RunKey, Measured]:
    """What the runs of the other study cost and scored, by row; those with the methods' default place."""
    from peftbench.analysis.efficiency import Measured, key_of
    from peftbench.analysis.outcomes import Outcome, average, over_seeds, read_outcomes
    from peftbench.efficiency.records import run_costs

    if spec.runs is None:
        return {}
    groups: dict[tuple[str, str, str], dict[str, list[Outcome]]] = {}
    for outcome in read_outcomes(spec.runs, results):
        cell = outcome.cell
        sets = groups.setdefault((cell.model, cell.method, cell.connector), {})
        sets.setdefault(cell.target, []).append(outcome)
    stands_for = {model.name: model.stands_for for model in spec.models}
    published = {
        (line["model"], line["method"], line["connector"]): float(line["performance"])
        for line in spec.published_rows
        if line.get("performance")
    }
    found = {}
    for row in rows:
        sets = groups.get((row.model, row.method, row.connector), {})
        if not sets:
            continue
        outcomes = [outcome for seeds in sets.values() for outcome in seeds]
        scores = [results / outcome.cell.scores for outcome in outcomes]
        complete = all(outcome.estimate for outcome in outcomes)
        same_way = len({outcome.higher_is_better for outcome in outcomes}) == 1
        mean = None
        if complete and same_way:
            mean = average([over_seeds([o.estimate for o in seeds if o.estimate]) for seeds in sets.values()])
        found[key_of(row)] = Measured(
            costs=run_costs(list(dict.fromkeys(s.parent.parent for s in scores)), [s.parent for s in scores]),
            score=mean.value if mean else None,
            stderr=mean.stderr if mean else None,
            published_score=published.get((stands_for[row.model], row.method, row.connector)),
        )
    return found
