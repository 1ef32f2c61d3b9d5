"""Read prepared data sets."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from peftbench.data.example import Example
from peftbench.data.images import load_image
from peftbench.errors import UserError

__all__ = ["load_image", "read_examples", "read_subset"]


def read_examples(data_dir: Path, split: str, ids: Collection[str] | None = None) -> list[Example]:
    """Return a split's examples in stored order, or those with the given ids in the order given.

    Raises ``UserError`` when the split is missing or an id is not in it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = data_dir / f"{split}.parquet"
    try:
        # one thread: a pool started here would not survive a fork
        rows = pq.read_table(path, use_threads=False).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete the folder and run again") from None
    try:
        examples = msgspec.convert(rows, list[Example])
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a prepared data set: {error}") from None
    if ids is None:
        return examples
    by_id = {example.id: example for example in examples}
    unknown = next((i for i in ids if i not in by_id), None)
    if unknown is not None:
        raise UserError(
            f"{path}: has no example {unknown!r} that the subset names: delete the subset's folder and run again"
        )
    return [by_id[i] for i in ids]


def read_subset(subset_dir: Path) -> list[str]:
    """Return the ids of a drawn subset, in training order before shuffling."""
    import pyarrow.parquet as pq

    try:
        return list(pq.read_table(subset_dir / "ids.parquet", use_threads=False)["id"].to_pylist())
    except OSError as error:
        raise UserError(
            f"{subset_dir}/ids.parquet: cannot be read ({error}): delete the folder and run again"
        ) from None
