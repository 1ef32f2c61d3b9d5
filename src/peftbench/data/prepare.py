"""Prepare a data set: the same columns for every source, images stored once."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftbench.data.example import Example
from peftbench.errors import UserError
from peftbench.spec import PrepareSpec


def prepare_dataset(spec: PrepareSpec, out_dir: Path, image_store: Path) -> dict[str, Any]:
    """Write ``<split>.parquet`` for each split of ``spec`` into ``out_dir``, pictures into ``image_store``.

    Returns facts for the record: per split, rows, pictures, types of question and the most common targets.
    Raises ``UserError`` for an unknown kind of source or a bad row, naming it.
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
    for split, rows in source.splits(spec, image_store):
        examples = list(checked(spec.dataset, rows))
        write_examples(examples, out_dir / f"{split}.parquet")
        facts[split] = {
            "rows": len(examples),
            "images": len({e.image for e in examples if e.image}),
            "question_types": dict(sorted(Counter(e.question_type for e in examples).items())),
            "common_targets": Counter(e.target for e in examples).most_common(3),
        }
    return {"splits": facts}


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


def write_examples(examples: list[Example], path: Path) -> None:
    """Write rows as parquet with a fixed schema, so that equal rows give equal bytes."""
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
    columns = {name: [getattr(e, name) for e in examples] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")
