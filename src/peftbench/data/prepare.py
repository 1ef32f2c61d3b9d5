"""Prepare a data set: the same columns for every source, images stored once, never all rows in memory."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peftbench.data.example import Example
from peftbench.errors import UserError
from peftbench.spec import PrepareSpec
from peftbench.store import atomic_parquet

ROW_GROUP = 8192
"""Rows written, and held in memory, at a time."""


def prepare_dataset(
    spec: PrepareSpec, out_dir: Path, image_store: Path, files: dict[str, Path] | None = None
) -> dict[str, Any]:
    """Write ``<split>.parquet`` for each split of ``spec`` into ``out_dir``, pictures into ``image_store``.

    ``files``: folders with what was retrieved, by the names of the source's ``from:``. Returns facts for the record:
    per split, rows, pictures, types of question, the most common targets, and bad rows that were left out. Raises
    ``UserError`` for an unknown kind of source, a bad row, or another number of rows than ``spec`` says; then no
    split is left behind (pictures may be: they are kept by content and shared).
    """
    kind = str(spec.source.get("kind", ""))
    try:
        source = importlib.import_module(f"peftbench.data.sources.{kind}")
    except ModuleNotFoundError:
        raise UserError(
            f"data set {spec.dataset}: unknown kind of source {kind!r}: see src/peftbench/data/sources/"
        ) from None
    out_dir.mkdir(parents=True, exist_ok=True)
    facts = {}
    written: list[Path] = []
    try:
        for split, rows in source.splits(spec, image_store, files or {}):
            path = out_dir / f"{split}.parquet"
            tally = _Tally()
            write_examples(tally.of(checked(spec.dataset, rows)), path)
            written.append(path)
            _check_count(spec, split, tally.rows)
            facts[split] = tally.facts() | getattr(rows, "facts", {})
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return {"splits": facts}


def _check_count(spec: PrepareSpec, split: str, rows: int) -> None:
    wanted = spec.splits[split]
    if rows != wanted:
        raise UserError(
            f"data set {spec.dataset}: split {split} has {rows} rows, its file says {wanted}: correct 'splits'"
        )


class _Tally:
    """Counts what goes by."""

    def __init__(self) -> None:
        self.rows = 0
        self.images: set[bytes] = set()
        self.question_types: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()

    def of(self, examples: Iterable[Example]) -> Iterator[Example]:
        for example in examples:
            self.rows += 1
            if example.image:
                self.images.add(bytes.fromhex(example.image))
            self.question_types[example.question_type] += 1
            self.targets[example.target] += 1
            yield example

    def facts(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "images": len(self.images),
            "question_types": dict(sorted(self.question_types.items())),
            "common_targets": self.targets.most_common(3),
        }


def checked(dataset: str, rows: Iterable[Example]) -> Iterable[Example]:
    """Yield the rows, refusing what later stages cannot use.

    Raises ``UserError`` naming the data set, the row and what is wrong with it.
    """
    seen = set()
    for row in rows:
        wrong = None
        if row.id in seen:
            wrong = "its id occurs twice"
        elif not row.answers:
            wrong = "it has no answers"
        elif not row.target:
            wrong = "it has nothing to train on (empty target)"
        elif row.answer_index >= len(row.choices):
            wrong = f"its answer is choice {row.answer_index} of {len(row.choices)}"
        if wrong:
            raise UserError(f"data set {dataset}, row {row.id!r}: {wrong}")
        seen.add(row.id)
        yield row


def write_examples(examples: Iterable[Example], path: Path) -> None:
    """Write rows as parquet with a fixed schema, so that equal rows give equal bytes; whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, texts = pa.string(), pa.list_(pa.string())
    schema = pa.schema(
        [
            ("id", text),
            ("image", text),
            ("question", text),
            ("choices", texts),
            ("answer_index", pa.int64()),
            ("answers", texts),
            ("target", text),
            ("question_type", text),
            ("answer_type", text),
            ("split", text),
            ("source", text),
        ]
    )

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in _groups(examples):
                columns = {name: [getattr(e, name) for e in group] for name in schema.names}
                writer.write_table(pa.table(columns, schema=schema))

    atomic_parquet(path, write)


def _groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in examples:
        group.append(example)
        if len(group) == ROW_GROUP:
            yield group
            group = []
    if group:
        yield group
