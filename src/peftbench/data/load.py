"""Read prepared data sets."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from peftbench.data.example import Example
from peftbench.data.images import load_image
from peftbench.errors import UserError

__all__ = ["load_image", "read_examples", "read_ids", "read_subset"]


def read_examples(data_dir: Path, split: str, ids: Collection[str] | None = None) -> list[Example]:
    """Return a split's examples in stored order, or those with the given ids in the order given.

    Raises ``UserError`` when the split is missing or an id is not in it.
    """
    path = data_dir / f"{split}.parquet"
    table = _table(path)
    if ids is not None:
        place = {name: at for at, name in enumerate(table.column("id").to_pylist())}
        unknown = next((name for name in ids if name not in place), None)
        if unknown is not None:
            raise UserError(
                f"{path}: has no example {unknown!r} that the subset names: delete the subset's folder and run again"
            )
        table = table.take([place[name] for name in ids])  # before rows become Python: there may be many more
    try:
        return [
            msgspec.convert(row, Example) for batch in table.to_batches(4096) for row in batch.to_pylist()
        ]
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a prepared data set: {error}") from None


def read_ids(data_dir: Path, split: str) -> list[str]:
    """Return the ids of a split in stored order; ``UserError`` when it is missing."""
    ids: list[str] = _table(data_dir / f"{split}.parquet", ["id"]).column("id").to_pylist()
    return ids


def _table(path: Path, columns: list[str] | None = None) -> Any:
    from peftbench.arrow import pa, read_table

    try:
        # one thread: a pool started here would not survive a fork
        table = read_table(path, columns=columns)
        if lacking := set(columns or ()) - set(table.column_names):
            raise ValueError(f"no column {min(lacking)!r}")
        return table
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete the folder and run again") from None


def read_subset(subset_dir: Path) -> list[str]:
    """Return the ids of a drawn subset, in training order before shuffling; ``UserError`` where they are not one."""
    path = subset_dir / "ids.parquet"
    ids: list[str] = _table(path, ["id"]).column("id").to_pylist()
    if not ids or len(set(ids)) < len(ids):
        what = "an id stands there twice" if ids else "it is empty"
        raise UserError(f"{path}: {what}: delete the folder and run again")
    return ids
