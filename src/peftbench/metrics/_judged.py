"""The table that the judge stage leaves and that metrics with a judge score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from peftbench.errors import UserError
from peftbench.store import atomic_parquet

JUDGEMENTS_FILE = "judgements.parquet"


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge said about one answer. It failed, or it has a rating; never both."""

    id: str
    type: str
    """Type of the question, "" where it has none."""
    prediction: str
    reply: str | None
    """The judge's text; None where there was no reply."""
    rating: int | None
    hallucinated: bool | None
    failed: str
    """Why there is no rating; "" where there is one."""


def write_judgements(rows: Sequence[Judgement], path: Path) -> None:
    """Write the table, in the order given."""
    from peftbench.arrow import pa, pq

    text = pa.string()
    schema = pa.schema(
        [
            ("id", text),
            ("type", text),
            ("prediction", text),
            ("reply", text),
            ("rating", pa.int64()),
            ("hallucinated", pa.bool_()),
            ("failed", text),
        ]
    )
    table = pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)
    atomic_parquet(path, lambda temporary: pq.write_table(table, temporary))


def read_judgements(path: Path) -> list[Judgement]:
    """Read the table; ``UserError`` where it is missing, damaged or contradicts itself."""
    from peftbench.arrow import pa, read_table

    if not path.is_file():
        raise UserError(f"{path}: no judgements: this metric scores what a judge says about the answers")
    try:
        rows = msgspec.convert(read_table(path).to_pylist(), list[Judgement])
    except (OSError, pa.ArrowInvalid, msgspec.ValidationError) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete the folder and run again") from None
    for row in rows:
        if (row.rating is None) != bool(row.failed) or (row.rating is None) != (row.hallucinated is None):
            raise UserError(
                f"{path}: row {row.id!r} both failed and has a rating, or neither: delete the folder and "
                "run again"
            )
    return rows
