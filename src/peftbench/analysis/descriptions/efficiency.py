"""Trainable parameters and operations of each method (Table 15 of the paper), from the real architectures.

Nothing is loaded or run: models are built on torch's meta device from their configuration at full size.
"""

from __future__ import annotations

from pathlib import Path

from peftbench.analysis.plain import PlainTable, to_latex
from peftbench.errors import UserError
from peftbench.store import atomic_text
from peftbench.views import DescribeSpec

NEEDS = ""
TEXT, ANSWER = 70, 5
"""Tokens of a visual question's prompt besides the picture's, and of its answer: declared, not measured."""


def write(spec: DescribeSpec, results: Path, out_dir: Path) -> dict[str, str]:
    """Write the table; sha256 by file name. ``UserError`` where no model of the study has known sizes."""
    from peftbench.analysis.efficiency import costs_table, write_efficiency
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
    outputs = write_efficiency(rows, workload, out_dir, spec.study)
    table = costs_table(rows, {})
    plain = PlainTable(
        title=spec.title,
        head=["Model", *(f"{h.label} {h.note}".replace(" · ", " ").strip() for h in table.headings)],
        rows=[[block.label, *row] for block in table.blocks for row in block.rows],
        right=list(range(table.keys + 1, len(table.headings) + 1)),
        notes=[spec.note] if spec.note else [],
    )
    path = out_dir / f"{spec.study}.tex"
    atomic_text(path, to_latex(plain))
    return {**outputs, path.name: file_sha256(path)}
