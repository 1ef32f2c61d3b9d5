"""What each base model was trained on before (Table 9 of the paper), as the models' files say."""

from pathlib import Path

from peftbench.analysis.plain import PlainTable
from peftbench.views import DescribeSpec

NEEDS = ""


def describe(spec: DescribeSpec, results: Path) -> PlainTable:
    """One row per model and phase of its training, and which data sets of the study are among them."""
    labels = {dataset.stands_for: dataset.label for dataset in spec.datasets}
    rows = []
    for model in spec.models:
        for phase, names in model.seen_data.items():
            ours = [labels[name] for name in names if name in labels]
            rows.append([model.title, phase, ", ".join(names), ", ".join(ours) or "–"])
        if not model.seen_data:
            rows.append([model.title, "–", "not stated in its file", "–"])
    note = "As the models' authors state it; the contamination table measures the overlap."
    notes = [note, *([spec.note] if spec.note else [])]
    head = ["Model", "Phase", "Trained on", "Of this study"]
    return PlainTable(title=spec.title, head=head, rows=rows, notes=notes)
