"""The data sets of a study (Table 8 of the paper): counted in the prepared data, not copied from anywhere."""

from pathlib import Path

from peftbench.analysis.plain import PlainTable
from peftbench.store import read_record
from peftbench.views import DescribeSpec

NEEDS = "data"
HEAD = [
    "Data set",
    "Metric",
    "Training",
    "Test",
    "Pictures",
    "Kind",
    "Paper: training",
    "Paper: test",
    "Paper: kind",
]


def describe(spec: DescribeSpec, results: Path) -> PlainTable:
    """One row per data set: rows and distinct pictures as prepared, and what the paper says of it."""
    published = {row["dataset"]: row for row in spec.published_rows}
    rows = []
    differing = []
    for dataset in spec.datasets:
        splits = read_record(results / dataset.data / "record.json").facts["splits"]
        kind = "seen" if dataset.seen else "unseen"
        paper = published.get(dataset.stands_for, {})
        said = paper.get("kind", "").lower()
        if said and said != kind:
            differing.append(dataset.label)
            said += " (misprint)"
        rows.append(
            [
                dataset.label,
                dataset.metric,
                _count(splits, "train", "rows"),
                _count(splits, "test", "rows"),
                str(sum(split["images"] for split in splits.values())),
                kind,
                paper.get("train", "–"),
                paper.get("test", "–"),
                said or "–",
            ]
        )
    notes = ["Counted in the prepared data. Pictures: distinct within each split."]
    notes += [spec.note] if spec.note else []
    if differing:
        notes.append(
            f"Misprint: the paper's Table 8 swaps the kinds of {' and '.join(differing)}; its text, its Figure 2 and "
            "its section 4.1 have them as here."
        )
    return PlainTable(title=spec.title, head=HEAD, rows=rows, right=[2, 3, 4, 6, 7], notes=notes)


def _count(splits: dict[str, dict[str, int]], split: str, what: str) -> str:
    return str(splits[split][what]) if split in splits else "–"
