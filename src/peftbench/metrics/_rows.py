"""Reading rows of JSON with errors that name the row: the files of ``peftbench score``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from peftbench.errors import UserError

RowId = int | str
"""Ids keep their type: 7 and "7" name the same row, and the output repeats what the references wrote."""
R = TypeVar("R")


def read_bytes(path: Path, what: str) -> bytes:
    """A whole file, or a UserError that says which one is missing. A leading byte-order mark is dropped."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}: check the path") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def decode_lines(data: bytes, kind: type[R], path: Path) -> list[R]:
    """Rows of a JSON-lines file as structs; the first bad row is a UserError with its line number and id."""
    try:
        return msgspec.json.Decoder(kind).decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Slow way: name the row. Lone surrogates, which msgspec refuses, come through here too.
        rows = []
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                rows.append(decode_one(line, kind, f"{path} line {number}"))
        return rows


def decode_one(line: bytes, kind: type[R], where: str) -> R:
    """One row, or a UserError that says where and what is wrong."""
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8: save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}): write one JSON object per line") from None
    return convert_row(row, kind, where)


def convert_row(row: Any, kind: type[R], where: str) -> R:
    """A row that was decoded as plain data, typed; a UserError says where and what is wrong."""
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError as error:
        name = f" (row {row_name(row)})" if row_name(row) else ""
        raise UserError(f"{where}{name}: {error}") from None


def row_name(row: Any) -> str:
    """The id of a raw row as people write it, "" where it has none."""
    if isinstance(row, dict):
        for key in ("id", "question_id", "doc_id", "index"):
            if key in row:
                return ascii(row[key])
    return ""


def unique_ids(ids: Iterable[RowId], what: str) -> dict[str, int]:
    """Position of each id, as text; a UserError names the first id that appears twice."""
    positions: dict[str, int] = {}
    for position, name in enumerate(ids):
        if positions.setdefault(str(name), position) != position:
            raise UserError(f"{what}: id {name!a} appears twice: keep one row per id")
    return positions


def align(
    wanted: list[RowId], given: list[RowId], what: str, missing: Callable[[RowId], None] | None = None
) -> Sequence[int]:
    """Position in ``given`` of each wanted id; -1 for a missing one where ``missing`` is told of it.

    Ids in ``given`` that appear twice, that no reference has, or (without ``missing``) that have no
    prediction are a UserError. ``wanted`` ids are known to be unique.
    """
    if wanted == given:
        return range(len(given))
    positions = unique_ids(given, what)
    names = [str(name) for name in wanted]
    out = [positions.pop(name, -1) for name in names]
    if positions:
        extra = given[next(iter(positions.values()))]
        raise UserError(f"{what}: id {extra!a} is in no reference row: remove it or add its reference")
    for name, position in zip(wanted, out, strict=True):
        if position < 0:
            if missing is None:
                raise UserError(f"{what}: no prediction for id {name!a}: every reference row needs one")
            missing(name)
    return out


def dump_row(row: dict[str, Any]) -> bytes:
    """One row of output. Lone surrogates in an id are escaped, as the standard library writes them."""
    try:
        return msgspec.json.encode(row) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"
