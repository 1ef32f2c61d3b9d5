"""pyarrow for our own files: Parquet of columns and rows, without pandas.

Import it inside functions: planning needs no pyarrow.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["pa", "pq", "read_table"]


class _NoPandas:
    """A finder of modules that refuses pandas."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pyarrow goes without pandas here", name=name)


def _without_pandas() -> None:
    """Let pyarrow make its one attempt to import pandas now, and in vain.

    It wants to know DataFrames when it sees them, which we have none of, and the import takes a second of CPU: more
    than most small jobs need. Where something else has imported pandas already, pyarrow may have it too, and
    whoever imports it later gets it.
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)


_without_pandas()


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of one file, or some of its columns.

    ``OSError``, ``pa.ArrowInvalid`` or ``KeyError`` (a column that it lacks) where it cannot be read. In one thread,
    as a pool started here would not survive a fork; not through ``pq.read_table``, which imports pandas and takes
    ``name=value`` in a folder's name for a column.
    """
    with pq.ParquetFile(path) as file:
        lacking = set(columns or ()) - set(file.schema_arrow.names)
        if lacking:
            raise KeyError(f"no column {min(lacking)!r}")
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
