"""Malformed data of the user's own: rows of tables, pictures, archives."""

# ruff: noqa: E501 - one line is one case

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from bad_case import (
    OWN_FILE,
    Damage,
    Table,
    changed,
    each,
    written,
)
from bad_world import Outcome, World, own_rows, picture, table

case = Table()

# ---- rows of data --------------------------------------------------------------------------------


def rows(name: str, damage: Damage, *says: str) -> None:
    """The user's own files, retrieved and prepared as the workflow does it."""

    def call(w: World) -> Outcome:
        done = w.job("retrieve", label="my_data")
        return done if done.status else w.job("prepare", label="own")

    case("rows", name, damage, call, *says)


def train_rows(change: Callable[[list[list[str]]], Any]) -> Damage:
    def damage(w: World) -> None:
        given = own_rows("train", 8)
        change(given)
        w.write("my_data/train.csv", table(given))

    return damage


def set_cell(row: int, column: int, value: str) -> Damage:
    return train_rows(lambda given: given[row].__setitem__(column, value))


def jsonl(text: str | bytes) -> Damage:
    """The training rows as JSON lines."""
    return each(
        written("my_data/train.jsonl", text),
        changed(OWN_FILE, "source.splits.train.rows.file", "train.jsonl"),
    )


def json_rows(text: str | bytes) -> Damage:
    return each(
        written("my_data/train.json", text),
        changed(OWN_FILE, "source.splits.train.rows.file", "train.json"),
    )


def parquet(data: bytes) -> Damage:
    return each(
        written("my_data/train.parquet", data),
        changed(OWN_FILE, "source.splits.train.rows.file", "train.parquet"),
    )


def zipped(entries: dict[str, bytes], **changes: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def huge_png() -> bytes:
    """A small file that says of itself that it has 10 gigapixels."""
    head = b"IHDR" + struct.pack(">II", 100_000, 100_000) + bytes([8, 2, 0, 0, 0])
    return picture("red", 0)[:12] + head + struct.pack(">I", zlib.crc32(head)) + picture("red", 0)[33:]


LINE = '{"file": "train_0.png", "question": "Which colour is it?", "answers": "red"}\n'
rows("a row without answers", set_cell(2, 2, ""), "own", "train", "train_2.png-2", "no answers")
rows(
    "a row with a picture that is not there",
    set_cell(1, 0, "gone.png"),
    "own",
    "train",
    "gone.png",
    "not there",
)
rows("a picture outside the folder", set_cell(1, 0, "../../config/config.yaml"), "config.yaml", "not there")
rows("a picture by an absolute path", set_cell(1, 0, "/etc/passwd"), "/etc/passwd", "not there")
rows(
    "the same row id twice",
    changed(OWN_FILE, "source.row.id", "question"),
    "own",
    "Which colour is it?",
    "twice",
)
rows("a row id that is empty", changed(OWN_FILE, "source.row.id", "= "), "own", "id is empty")
rows("fewer rows than the file says", changed(OWN_FILE, "splits.train", 9), "own", "train has 8 rows", "says 9", "correct 'splits'")  # fmt: skip
rows(
    "a table with a header alone",
    written("my_data/train.csv", "file,question,answers\n"),
    "own",
    "train has 0 rows",
)
rows("an empty table", written("my_data/train.csv", ""), "own", "train")
rows("a column missing", written("my_data/train.csv", "file,qestion,answers\ntrain_0.png,b,c\n"), "own", "question", "did you mean 'qestion'")  # fmt: skip
rows(
    "a short line",
    lambda w: w.edit("my_data/train.csv", lambda b: b + b"a.png\n"),
    "train.csv",
    "line 10",
    "fields",
)
rows(
    "a quote that is not closed", lambda w: w.edit("my_data/train.csv", lambda b: b + b'"a,b\n'), "train.csv"
)
rows(
    "CSV in Latin-1",
    lambda w: w.edit("my_data/train.csv", lambda b: b.replace(b"red", b"\xe9")),
    "train.csv",
    "not UTF-8",
)
rows("CSV in UTF-16", lambda w: w.edit("my_data/train.csv", lambda b: b.decode().encode("utf-16")), "train.csv", "not UTF-8")  # fmt: skip
rows(
    "null bytes in CSV",
    lambda w: w.edit("my_data/train.csv", lambda b: b.replace(b"red", b"\0\0\0")),
    "train.csv",
)
rows("a table that is a picture", written("my_data/train.csv", picture("red", 1)), "train.csv", "not UTF-8")
rows("an unknown suffix", lambda w: (w.path("my_data/train.csv").rename(w.path("my_data/train.dat")), w.change(OWN_FILE, "source.splits.train.rows.file", "train.dat")), "train.dat", "format")  # fmt: skip
rows("a pattern that matches nothing", changed(OWN_FILE, "source.splits.train.rows.file", "trian*.csv"), "trian*.csv", "train.csv")  # fmt: skip
rows("a pattern outside the folder", changed(OWN_FILE, "source.splits.train.rows.file", "../../*.yaml"), "../../*.yaml", "no file matches")  # fmt: skip
rows("a broken line of JSON", jsonl(LINE * 3 + LINE[:30] + "\n"), "train.jsonl", "line 4", "not JSON")
rows("a line that is no object", jsonl(LINE + "[1, 2]\n"), "train.jsonl", "row 1", "not an object")
rows(
    "JSON lines in Latin-1",
    jsonl(LINE.replace("red", "\xe9").encode("latin-1")),
    "train.jsonl",
    "line 1",
    "UTF-8",
)
rows("deep JSON", jsonl("[" * 100_000 + "\n"), "train.jsonl", "line 1")
rows("a number of 5000 digits", jsonl('{"file": ' + "9" * 5000 + "}\n"), "train.jsonl", "line 1")
rows("NaN for an answer", jsonl(LINE.replace('"red"', "NaN") * 8), "own", "no answers")
rows(
    "an object for a question",
    jsonl(LINE.replace('"Which colour is it?"', '{"text": "x"}') * 8),
    "own",
    "question",
)
rows("JSON that ends early", json_rows('[{"file": "a"}, '), "train.json", "not the JSON")
rows("JSON with more behind it", json_rows("[] []"), "train.json", "more after the end")
rows("deep JSON in one document", json_rows("[" * 100_000), "train.json")
rows("parquet that is none", parquet(b"PAR1" + b"x" * 100), "train.parquet", "not readable parquet")
rows("parquet that is empty", parquet(b""), "train.parquet", "not readable parquet")
rows("a picture that is a text", written("my_data/pictures/train_1.png", "no picture"), "train_1.png", "not a readable image")  # fmt: skip
rows("a picture that is empty", written("my_data/pictures/train_1.png", ""), "train_1.png", "empty")
rows("a picture cut off", lambda w: w.edit("my_data/pictures/train_1.png", lambda b: b[:400]), "train_1.png", "not a readable image")  # fmt: skip
rows(
    "a picture of 10 gigapixels", written("my_data/pictures/train_1.png", huge_png()), "train_1.png", "pixels"
)
rows("an archive that is none", each(written("my_data/pictures.zip", b"PK\3\4 no"), changed(OWN_FILE, "source.image", {"in": "own", "archive": "*.zip", "name": "{file}"})), "pictures.zip", "zip")  # fmt: skip
rows("an archive whose members leave", each(written("my_data/pictures.zip", zipped({"../../config/train_0.png": picture("red", 1)})), changed(OWN_FILE, "source.image", {"in": "own", "archive": "*.zip", "name": "{file}"})), "own", "not there")  # fmt: skip
rows("a training picture in the test", each(changed(OWN_FILE, "source.image_disjoint", True), lambda w: w.write("my_data/pictures/train_0.png", w.path("my_data/pictures/test_0.png").read_bytes())), "own", "also in split test")  # fmt: skip
rows("a record.json among the data", written("my_data/record.json", "{}"), "my_data", "record.json", "rename")
