"""Data sets of kind ``table``: public ones and a user's own, described by their file alone.

Their rows come from repositories of the Hugging Face hub, from files of the web or local files: parquet, CSV,
JSON, as they are, and out of zip archives. ``peftbench.data.tables.spec`` documents every key,
``peftbench.data.tables.expressions`` how values are named; ``docs/own_data.md`` has complete examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from peftbench.data.example import Example
from peftbench.data.tables.spec import TableSource, parse
from peftbench.data.tables.split import Seen, SplitExamples
from peftbench.errors import UserError, did_you_mean
from peftbench.spec import PrepareSpec

__all__ = ["RETRIEVES", "TableSource", "parse", "splits"]

RETRIEVES = True
"""This kind takes ``from:``."""


def splits(
    spec: PrepareSpec, image_store: Path, files: dict[str, Path]
) -> Iterator[tuple[str, Iterable[Example]]]:
    """Yield each split with its rows, the training split last: its images are compared with those of the others.

    ``files``: origin -> folder with what was retrieved for it.
    """
    source = parse(spec.source)
    for given, other, key in (
        (spec.splits, source.splits, "source.splits"),
        (source.splits, spec.splits, "splits"),
    ):
        for name in given:
            if name not in other:
                raise UserError(
                    f"data set {spec.dataset}: {key}: no split {name!r}{did_you_mean(name, other)}"
                )
    seen = Seen()
    for name in sorted(spec.splits, key=lambda split: split == "train"):
        yield name, SplitExamples(spec.dataset, name, source, files, image_store, seen)
