"""Rows of tables, one at a time, whatever their files are."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from peftbench.data.tables.files import folder_of, open_all
from peftbench.data.tables.json_stream import json_rows
from peftbench.data.tables.spec import Table
from peftbench.errors import UserError

Rows = Iterator[dict[str, Any]]
_SUFFIXES = {"ndjson": "jsonl", "pq": "parquet"}
_BATCH = 256
"""Rows of parquet decoded at a time: they may hold pictures."""


def table_rows(table: Table, files: dict[str, Path], columns: set[str] | None) -> Rows:
    """Rows of a table as mappings from column to value, with ``_row``, ``_file`` and ``_folder``.

    ``columns``: those that are needed; others may be missing from the rows. None: all. Raises ``UserError`` with
    file and place for what cannot be read.
    """
    folder = folder_of(files, table.in_)
    if table.split:
        from peftbench.data.tables.hub import hub_rows

        yield from _numbered(hub_rows(folder, table.config, table.split, columns), "", 0)
        return
    number = 0
    what = f"file of the table in {table.in_!r}" + (f", member {table.member!r}" if table.member else "")
    for where, name, stream in open_all(folder, table.file, table.member, what):
        form = table.format or _form(name, where)
        try:
            for row in _numbered(_READERS[form](stream, table, columns, where), name, number):
                number += 1
                yield row
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise UserError(f"{where}: cannot be read ({error}): retrieve it again") from None


def _numbered(rows: Iterator[Any], name: str, number: int) -> Rows:
    folder = name.rpartition("/")[0].rpartition("/")[2]
    for number, row in enumerate(rows, number):  # noqa: B020
        if not isinstance(row, dict):
            raise UserError(
                f"{name}: row {number} is {type(row).__name__}, not an object: is 'field' missing in the data set file?"
            )
        row["_row"], row["_file"], row["_folder"] = number, name, folder
        yield row


def _form(name: str, where: str) -> str:
    suffix = name.rpartition(".")[2].lower()
    form = _SUFFIXES.get(suffix, suffix)
    if form not in _READERS:
        raise UserError(f"{where}: cannot tell the format: give 'format', one of {', '.join(_READERS)}")
    return form


def _csv(stream: IO[bytes], table: Table, columns: set[str] | None, where: str, tab: str = ",") -> Rows:
    csv.field_size_limit(1 << 30)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(_without_nulls(text, where), delimiter=tab, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{where}, line {reader.line_num}: more or fewer fields than the header's "
                    f"{len(reader.fieldnames or ())}: quote fields that contain {tab!r}"
                )
            yield row
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num}: not valid CSV ({error})") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text: save it as UTF-8") from None


def _without_nulls(lines: Iterable[str], where: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{where}, line {number}: a null byte: the file is damaged, or not UTF-8 text")
        yield line


def _tsv(stream: IO[bytes], table: Table, columns: set[str] | None, where: str) -> Rows:
    return _csv(stream, table, columns, where, "\t")


def _json(stream: IO[bytes], table: Table, columns: set[str] | None, where: str) -> Rows:
    try:
        yield from json_rows(stream, table.field)
    except ValueError as error:
        raise UserError(f"{where}: not the JSON it should be: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: not the JSON it should be: nested too deeply") from None


def _jsonl(stream: IO[bytes], table: Table, columns: set[str] | None, where: str) -> Rows:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except UnicodeDecodeError:
                raise UserError(f"{where}, line {number}: not UTF-8 text: save it as UTF-8") from None
            except ValueError as error:
                raise UserError(f"{where}, line {number}: not JSON ({error})") from None
            except RecursionError:
                raise UserError(f"{where}, line {number}: not JSON (nested too deeply)") from None


def _parquet(stream: IO[bytes], table: Table, columns: set[str] | None, where: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as spool:
        if not stream.seekable() or isinstance(stream, zipfile.ZipExtFile):
            while chunk := stream.read(1 << 20):
                spool.write(chunk)
            spool.seek(0)
            stream = spool
        try:
            file = pq.ParquetFile(stream)
            wanted = None if columns is None else [n for n in file.schema_arrow.names if n in columns]
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False):
                if wanted == []:  # such a batch knows no length
                    yield from ({} for _ in range(batch.num_rows))
                else:
                    yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise UserError(f"{where}: not readable parquet ({' '.join(str(error).split())})") from None


_READERS: dict[str, Callable[[IO[bytes], Table, set[str] | None, str], Rows]] = {
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
