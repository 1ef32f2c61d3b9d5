"""Annotators' files: read, checked against the key of their sheet, put together."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from peftbench.annotation.sheet import Sheet, System, read_sheet
from peftbench.errors import UserError

FORMAT = "peftbench-annotations-1"
COLUMNS = ("sheet", "annotator", "item", "answer", "hallucination", "note")
YES = {"yes", "true", "1", "x"}
NO = {"no", "false", "0"}
Mark = tuple[str, str]
"""Item and answer."""


class Annotation(msgspec.Struct, frozen=True, kw_only=True):
    """All that one person said about a sheet."""

    annotator: str
    flags: dict[Mark, bool]
    """Whether an answer contains a hallucination."""
    notes: dict[Mark, str]
    """Only those that say something."""


class Annotations(msgspec.Struct, frozen=True, kw_only=True):
    """A sheet with the complete annotations of one or more people, in the order of their names."""

    sheet: Sheet
    people: list[Annotation]

    @property
    def marks(self) -> list[Mark]:
        """All wordings that were judged, in the order of the sheet."""
        return [(item.id, answer.key) for item in self.sheet.items for answer in item.answers]

    def of_system(self, system: System) -> list[Mark]:
        """The wording of one system for each item."""
        return [
            (item.id, answer.key)
            for item in self.sheet.items
            for answer in item.answers
            if system in answer.systems
        ]


class _File(msgspec.Struct, frozen=True):
    sheet: str
    annotator: str
    rows: list[tuple[str, str, Any, str]]


def import_annotations(files: Sequence[Path], sheet: Path) -> Annotations:
    """Read any number of annotators' files (JSON or CSV) for the sheet with that key.

    ``UserError``, naming the file: unreadable, of another sheet, an unknown item or answer, an item that is
    missing or judged in part, an annotator without a name or with two files.
    """
    key = read_sheet(sheet)
    if not files:
        raise UserError("no annotations to import: give the files that the annotators downloaded")
    people: dict[str, tuple[Path, Annotation]] = {}
    for path in files:
        annotation = _checked(_read(path), key, path)
        same = annotation.annotator.casefold()
        if same in people:
            raise UserError(
                f"{path}: annotator {annotation.annotator!r} has a file already ({people[same][0]}): keep the "
                "last one, or tell two people of the same name apart"
            )
        people[same] = path, annotation
    return Annotations(sheet=key, people=[people[name][1] for name in sorted(people)])


def _checked(file: _File, sheet: Sheet, path: Path) -> Annotation:
    if file.sheet != sheet.sheet:
        raise UserError(
            f"{path}: belongs to sheet {file.sheet[:32]!r}, not {sheet.sheet}: import it with its own key"
        )
    name = " ".join(file.annotator.split())
    if not name:
        raise UserError(f"{path}: no annotator's name: fill it in")
    known = {item.id: {answer.key for answer in item.answers} for item in sheet.items}
    flags: dict[Mark, bool] = {}
    notes: dict[Mark, str] = {}
    for item, answer, value, note in file.rows:
        if item not in known:
            raise UserError(f"{path}: item {item!r} is not on the sheet: files must not be edited")
        if answer not in known[item]:
            raise UserError(f"{path}: item {item!r} has no answer {answer!r}: files must not be edited")
        if (item, answer) in flags:
            raise UserError(f"{path}: answer {answer!r} to item {item!r} stands there twice: remove one")
        flags[item, answer] = _flag(value, f"{path}: answer {answer!r} to item {item!r}")
        if note.strip():
            notes[item, answer] = note.strip()
    missing = [n for n, keys in known.items() if any((n, key) not in flags for key in keys)]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(known)} items are not judged, the first is {missing[0]!r}: load the "
            "JSON file into the sheet, finish it and download it again"
        )
    return Annotation(annotator=name, flags=flags, notes=notes)


def _flag(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in YES or text in NO:
        return text in YES
    raise UserError(f"{where}: hallucination is {value!r}: write yes or no")


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8: save the file as UTF-8, or use the JSON file") from None
    return _read_json(text, path) if text.lstrip().startswith("{") else _read_csv(text, path)


def _read_json(text: str, path: Path) -> _File:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): download the file again") from None
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: not a file that an annotation sheet wrote: download it from the sheet")
    try:
        rows = [
            (str(row["item"]), str(row["answer"]), row["hallucination"], str(row.get("note") or ""))
            for row in content["answers"]
        ]
        return _File(str(content["sheet"]), str(content["annotator"]), rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: incomplete ({error} is missing): download the file again") from None


def _read_csv(text: str, path: Path) -> _File:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets write what their country's commas allow
    try:
        table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: not CSV ({error}): use the JSON file") from None
    names = set(table[0]) if table else set()
    lacking = [name for name in COLUMNS[:-1] if name not in names]
    if lacking:
        what = f"no column {lacking[0]!r}" if table else "no rows"
        raise UserError(f"{path}: {what}: give a file that an annotation sheet wrote, as JSON or CSV")
    for column in ("sheet", "annotator"):
        values = sorted({str(row[column]) for row in table})
        if len(values) > 1:
            raise UserError(
                f"{path}: several values of {column} ({values[0]!r}, {values[1]!r}): one per file"
            )
    rows = [(row["item"], row["answer"], row["hallucination"], row.get("note") or "") for row in table]
    return _File(table[0]["sheet"], table[0]["annotator"], rows)
