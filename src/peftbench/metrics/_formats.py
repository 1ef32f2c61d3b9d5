"""Prediction files of other evaluators: reading them, and writing predictions for them.

==========  =================================================================================================
peftbench   JSON lines ``{"id", "prediction"}``
llava       JSON lines of its ``model_vqa*.py``: ``question_id``, ``prompt``, ``text``, ``answer_id``,
            ``model_id``, ``metadata``
vqa         JSON array of VQA submissions: ``question_id``, ``answer``
lmms_eval   ``*_samples_*.jsonl`` of lmms-eval: ``doc_id``, ``filtered_resps`` (or ``resps``), ``target``
vlmevalkit  table of VLMEvalKit: ``index``, ``prediction``; .xlsx (its own output), .tsv, .csv, .json
==========  =================================================================================================

The format is told by the suffix and the fields of the first row, or named by the caller.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec

from peftbench.errors import UserError
from peftbench.metrics._rows import RowId, convert_row, decode_lines, decode_one, dump_row, read_bytes

FORMATS = ("peftbench", "llava", "vqa", "lmms_eval", "vlmevalkit")
Predictions = tuple[list[RowId], list[str]]
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


class _Own(msgspec.Struct, gc=False):
    id: int | str
    prediction: str


class _Llava(msgspec.Struct, gc=False):
    question_id: int | str
    text: str


class _Vqa(msgspec.Struct, gc=False):
    question_id: int | str
    answer: str


class _Lmms(msgspec.Struct, gc=False):
    doc_id: int | str
    filtered_resps: list[Any] | str | None = None
    resps: list[Any] | str | None = None


class _Vlm(msgspec.Struct, gc=False):
    index: int | str
    prediction: str


_ROWS: dict[str, type[Any]] = {
    "peftbench": _Own,
    "llava": _Llava,
    "vqa": _Vqa,
    "lmms_eval": _Lmms,
    "vlmevalkit": _Vlm,
}


def read_predictions(path: Path, form: str = "auto") -> Predictions:
    """(ids, texts) of a prediction file, in its order; a UserError names the first bad row."""
    suffix = path.suffix.lower()
    if suffix in (".tsv", ".csv", ".xlsx"):
        return _read_table(path, suffix)
    data = read_bytes(path, "predictions")
    array = data.lstrip()[:1] == b"["
    if form == "auto":
        form = _tell(data, array, path)
    kind = _ROWS[form]
    rows = _decode_array(data, kind, path) if array else decode_lines(data, kind, path)
    if not rows:
        raise UserError(f"predictions {path}: no rows: the file is empty")
    if form == "peftbench":
        return [row.id for row in rows], [row.prediction for row in rows]
    if form == "llava":
        return [row.question_id for row in rows], [row.text for row in rows]
    if form == "vqa":
        return [row.question_id for row in rows], [row.answer for row in rows]
    if form == "vlmevalkit":
        return [row.index for row in rows], [row.prediction for row in rows]
    return [row.doc_id for row in rows], [_response(row, path) for row in rows]


def _tell(data: bytes, array: bool, path: Path) -> str:
    """The format that the first row's fields belong to."""
    start = data.find(b"{")
    try:
        text = data[start : start + (1 << 20)].decode(errors="replace")
        first, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict):
        for form, fields in (
            ("peftbench", ("id", "prediction")),
            ("llava", ("question_id", "text")),
            ("vqa", ("question_id", "answer")),
            ("lmms_eval", ("doc_id",)),
            ("vlmevalkit", ("index", "prediction")),
        ):
            if all(field in first for field in fields):
                return form
    return "vqa" if array else "peftbench"


def _decode_array(data: bytes, kind: type[Any], path: Path) -> list[Any]:
    try:
        return msgspec.json.Decoder(list[kind]).decode(data)  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeDecodeError):
        rows = decode_one(data, list[Any], f"predictions {path}")
        return [convert_row(row, kind, f"predictions {path} row {number}") for number, row in enumerate(rows)]


def _response(row: _Lmms, path: Path) -> str:
    """The first response of a sample of lmms-eval: nested lists hold one response per request and filter."""
    value: Any = row.filtered_resps if row.filtered_resps is not None else row.resps
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise UserError(
            f"predictions {path}: doc_id {row.doc_id!a} has no response: the sample is incomplete"
        )
    return value


def _read_table(path: Path, suffix: str) -> Predictions:
    if suffix == ".xlsx":
        rows = _read_xlsx(path)
    else:
        text = read_bytes(path, "predictions").decode("utf-8", "replace")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ","))
    header = rows[0] if rows else []
    if "index" not in header or "prediction" not in header:
        raise UserError(
            f'predictions {path}: the table has no columns "index" and "prediction": is it VLMEvalKit\'s?'
        )
    index, prediction = header.index("index"), header.index("prediction")
    ids: list[RowId] = []
    texts = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        if len(row) <= index or not row[index]:
            raise UserError(f"predictions {path} row {number}: it has no index: mend the table")
        # Spreadsheets write whole numbers as 7.0.
        name = row[index].removesuffix(".0")
        ids.append(int(name) if name.isascii() and name.isdigit() else name)
        texts.append(row[prediction] if len(row) > prediction else "")
    return ids, texts


def _read_xlsx(path: Path) -> list[list[str]]:
    """Cells of the first sheet as text; as much of the format as pandas and openpyxl write."""
    try:
        with zipfile.ZipFile(path) as book:
            names = book.namelist()
            shared = []
            if "xl/sharedStrings.xml" in names:
                for item in ElementTree.fromstring(book.read("xl/sharedStrings.xml")):
                    shared.append("".join(part.text or "" for part in item.iter(f"{_SHEET}t")))
            sheets = sorted(name for name in names if name.startswith("xl/worksheets/sheet"))
            sheet = ElementTree.fromstring(book.read(sheets[0]))
    except (OSError, zipfile.BadZipFile, ElementTree.ParseError, IndexError, KeyError) as error:
        raise UserError(f"predictions {path}: not a spreadsheet ({error}): save it as .tsv") from None
    rows = []
    for line in sheet.iter(f"{_SHEET}row"):
        cells: list[str] = []
        for cell in line.iter(f"{_SHEET}c"):
            column = _column(cell.get("r", ""), len(cells))
            cells += [""] * (column - len(cells))
            value = cell.find(f"{_SHEET}v")
            if cell.get("t") == "inlineStr":
                cells.append("".join(part.text or "" for part in cell.iter(f"{_SHEET}t")))
            elif cell.get("t") == "s" and value is not None:
                cells.append(shared[int(value.text or 0)])
            else:
                cells.append((value.text or "") if value is not None else "")
        rows.append(cells)
    return rows


def _column(reference: str, default: int) -> int:
    """Zero-based column of a cell such as "AB7"."""
    number = 0
    for letter in reference:
        if not letter.isalpha():
            break
        number = number * 26 + ord(letter.upper()) - ord("A") + 1
    return number - 1 if number else default


def write_predictions(ids: Sequence[RowId], texts: Sequence[str], form: str) -> bytes:
    """A prediction file in another evaluator's format."""
    return _WRITERS[form](ids, texts)


def _write_lines(
    row: Callable[[RowId, str], dict[str, Any]],
) -> Callable[[Sequence[RowId], Sequence[str]], bytes]:
    return lambda ids, texts: b"".join(
        dump_row(row(name, text)) for name, text in zip(ids, texts, strict=True)
    )


def _write_vqa(ids: Sequence[RowId], texts: Sequence[str]) -> bytes:
    rows = [dump_row({"question_id": i, "answer": t}).rstrip(b"\n") for i, t in zip(ids, texts, strict=True)]
    return b"[" + b",\n".join(rows) + b"]\n"


def _write_table(ids: Sequence[RowId], texts: Sequence[str]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t", lineterminator="\r\n")  # so that both are quoted in texts
    writer.writerow(["index", "prediction"])
    writer.writerows(zip(ids, texts, strict=True))
    return stream.getvalue().encode("utf-8", "replace")


_WRITERS: dict[str, Callable[[Sequence[RowId], Sequence[str]], bytes]] = {
    "peftbench": _write_lines(lambda name, text: {"id": name, "prediction": text}),
    "llava": _write_lines(
        lambda name, text: {
            "question_id": name,
            "prompt": "",
            "text": text,
            "answer_id": str(name),
            "model_id": "peftbench",
            "metadata": {},
        }
    ),
    "vqa": _write_vqa,
    "lmms_eval": _write_lines(
        lambda name, text: {"doc_id": name, "target": "", "filtered_resps": [text], "resps": [[text]]}
    ),
    "vlmevalkit": _write_table,
}
