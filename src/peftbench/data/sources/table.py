"""Data sets of kind ``table``: public ones and a user's own, described by their file alone.

Their rows come from repositories of the Hugging Face hub, from files of the web or local files: parquet, CSV,
JSON, as they are, and out of zip archives. ``peftbench.data.tables.spec`` documents every key,
``peftbench.data.tables.expressions`` how values are named; ``docs/own_data.md`` has complete examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peftbench.data.example import Example
from peftbench.data.tables.spec import TableSource, parse
from peftbench.data.tables.split import Seen, SplitExamples
from peftbench.errors import UserError, did_you_mean
from peftbench.spec import PrepareSpec

__all__ = ["RETRIEVES", "TableSource", "check_splits", "parse", "splits"]

RETRIEVES = True
"""This kind takes ``from:``."""


def splits(
    spec: PrepareSpec, image_store: Path, files: dict[str, Path]
) -> Iterator[tuple[str, Iterable[Example]]]:
    """Yield each split with its rows, the training split last: its images are compared with those of the others.

    ``files``: origin -> folder with what was retrieved for it.
    """
    source = parse(spec.source)
    try:
        check_splits(spec.source, spec.splits)
    except UserError as error:
        raise UserError(f"data set {spec.dataset}: {error}") from None
    seen = Seen()
    for name in sorted(spec.splits, key=lambda split: split == "train"):
        yield name, SplitExamples(spec.dataset, name, source, files, image_store, seen)


def check_splits(source: dict[str, Any], splits: dict[str, int]) -> None:
    """``UserError`` unless the source has the splits that the data set's file promises, and no others."""
    own = source["splits"]
    for given, other, key in ((splits, own, "source.splits"), (own, splits, "splits")):
        for name in given:
            if name not in other:
                raise UserError(f"{key}: no split {name!r}{did_you_mean(name, other)}")
