"""The second table of a join: on disk, with only its keys and places in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import msgspec

from peftbench.data.tables.expressions import BadRow, MissingColumn, compiled, pruned
from peftbench.errors import UserError

_LENGTH_BITS = 32


class Lookup:
    """Rows by key. Of each row only what ``paths`` need is kept, in a temporary file."""

    def __init__(self, rows: Iterable[dict[str, Any]], key: str, paths: set[str], what: str) -> None:
        """Read all rows; ``UserError`` for a missing key column, an unreadable key or one that occurs twice."""
        self.what = what
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115
        self._places: dict[str, int] = {}
        encode = msgspec.msgpack.Encoder().encode
        expression = compiled(key)
        at = 0
        for row in rows:
            try:
                name = str(expression(row))
            except (MissingColumn, BadRow) as error:
                raise UserError(f"{what}: row {row['_row']}: {error}") from None
            if name in self._places:
                raise UserError(f"{what}: {key} {name!r} occurs twice: rows cannot be joined")
            data = encode(pruned(row, paths))
            self._spool.write(data)
            self._places[name] = at << _LENGTH_BITS | len(data)
            at += len(data)
        self._spool.flush()
        self._key = key

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: Any) -> dict[str, Any]:
        """The row with that key; ``BadRow`` where there is none."""
        place = self._places.get(str(key))
        if place is None:
            raise BadRow(f"no row with {self._key} {str(key)!r} in the joined table")
        self._spool.seek(place >> _LENGTH_BITS)
        found: dict[str, Any] = msgspec.msgpack.decode(
            self._spool.read(place & ((1 << _LENGTH_BITS) - 1)), type=dict
        )
        return found

    def close(self) -> None:
        """Give the disk space back."""
        self._spool.close()
