"""How each data set is asked (Table 10 of the paper): the templates of its file, one drawn per picture."""

from pathlib import Path

from peftbench.analysis.plain import PlainTable
from peftbench.views import DescribeSpec

NEEDS = ""


def describe(spec: DescribeSpec, results: Path) -> PlainTable:
    """One row per template, and below them the chat template of each model."""
    rows = [
        [dataset.label, f"{place} of {len(dataset.templates)}", template, str(dataset.max_new_tokens)]
        for dataset in spec.datasets
        for place, template in enumerate(dataset.templates, 1)
    ]
    chats = "; ".join(f"{model.title}: {model.template}" for model in spec.models)
    notes = [
        "{question}, {choices} (a, b, c) and {lettered} (A. a B. b) are filled in; the picture stands before the text.",
        f"Chat templates: {chats}.",
        *([spec.note] if spec.note else []),
    ]
    head = ["Data set", "Template", "Text", "Longest answer (tokens)"]
    return PlainTable(title=spec.title, head=head, rows=rows, right=[3], notes=notes)
