"""Settings of training for each model (Table 11 of the paper), as runs would have them; the paper's beside ours."""

from pathlib import Path
from typing import Any

import msgspec

from peftbench.analysis.plain import PlainTable
from peftbench.analysis.style import method_title
from peftbench.views import DescribeSpec

NEEDS = ""
SHOWN = (
    "connector_learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "beta2",
    "max_grad_norm",
    "global_batch",
    "epochs",
    "max_length",
)


def describe(spec: DescribeSpec, results: Path) -> PlainTable:
    """One row per setting and one column per model; then each method's settings. "≠" marks what the paper prints."""
    published = {(row["model"], row["setting"]): row["value"] for row in spec.published_rows}
    rows = []

    def add(name: str, values: list[Any]) -> None:
        cells = []
        for model, value in zip(spec.models, values, strict=True):
            said = published.get((model.stands_for, name))
            text = _text(value)
            same = said is None or _same(said, value)
            cells.append(text if same else f"{text} (paper: {said} ≠)")
        rows.append([name.replace("_", " "), *cells])

    for field in SHOWN:
        add(field, [model.training[field] for model in spec.models])
    add("precision", [model.precision for model in spec.models])
    for method in spec.models[0].methods if spec.models else []:
        for setting in spec.models[0].methods[method]:
            values = [model.methods[method].get(setting) for model in spec.models]
            rows.append([f"{method_title(method)}: {setting.replace('_', ' ')}", *map(_text, values)])
    head = ["Setting", *(model.title for model in spec.models)]
    notes = [
        "AdamW with beta1 0.9 and eps 1e-8. Misprints of the paper's Table 11: ViT and LLM stand in each other's rows, "
        "and the column of LLaVA-13B names Vicuna-7B."
    ]
    notes += [spec.note] if spec.note else []
    return PlainTable(title=spec.title, head=head, rows=rows, right=list(range(1, len(head))), notes=notes)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else msgspec.json.encode(value).decode()
    )


def _same(said: str, value: Any) -> bool:
    try:
        return float(said) == float(value)
    except (TypeError, ValueError):
        return said == str(value)
