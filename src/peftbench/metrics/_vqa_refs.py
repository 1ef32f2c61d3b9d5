"""VQA references compiled to integers: each distinct answer is normalised once.

A question becomes one row of answer ids, so that scoring a prediction is comparing one integer with ten.
References read from a file are kept by its digest (``_cache``): the second evaluation on the same file reads
a few megabytes.
"""

from __future__ import annotations

import gc
import itertools
import json
import operator
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from peftbench.errors import UserError
from peftbench.metrics import _cache
from peftbench.metrics._rows import RowId, convert_row, decode_one, read_bytes, unique_ids
from peftbench.metrics._vqa_text import answer_forms

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
"""Version of the compiled form on disk; part of its name, so that another version is simply not found."""
BLOCK = 1 << 17
"""Bytes of text decoded at a time: small enough to stay in the cache of one core."""
_ARRAY_OPENING = re.compile(
    rb'\s*(?:\{.{0,65536}?(?P<key>"annotations")\s*:\s*)?\[\s*(?P<record>\{\s*"[^"\\]*"\s*:)?', re.DOTALL
)
"""Where the array of rows begins, in an official file or a bare array, and how its first row begins."""
_TEXT = operator.attrgetter("answer")
_ANSWERS = operator.attrgetter("answers")
FORMS = ("raw", "clean", "normalised", "evalai", "stripped")


class Labels(msgspec.Struct):
    """A label per question: names, and the position of each question's in them int32 [n], or none."""

    names: list[str]
    codes: np.ndarray | None


class Compiled(msgspec.Struct):
    """References of n questions.

    Questions are grouped by their number of answers: for real data there is one group of ten.
    """

    ids: list[RowId]
    images: np.ndarray | None
    """Cluster of each question, int [n]; None where no two questions share an image."""
    answer_types: Labels
    question_types: Labels
    groups: list[tuple[np.ndarray, np.ndarray]]
    """Per group: positions of its questions int64 [m], raw answer ids int32 [width, m]."""
    forms: dict[str, np.ndarray]
    """Per form (see ``FORMS``): id in ``vocabulary`` of that form of each raw answer, int32 [answers]."""
    vocabulary: dict[str, int]


class _Interner(dict[str, int]):
    """Ids for strings in order of first appearance."""

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number


def compile_answers(
    ids: Sequence[RowId],
    answers: Sequence[Sequence[str]],
    images: Sequence[str] = (),
    answer_types: Sequence[str] = (),
    question_types: Sequence[str] = (),
) -> Compiled:
    """Compile references; a question without answers is a UserError naming it."""
    columns = _Columns()
    columns.ids.extend(ids)
    columns.images.extend(images)
    columns.answer_types.extend(answer_types)
    columns.question_types.extend(question_types)
    columns.add_answers(answers)
    return columns.compile("examples")


class _Columns:
    """References on their way to integers: ids, labels, and one growing array of answer ids."""

    def __init__(self) -> None:
        self.ids: list[RowId] = []
        self.images: list[RowId] = []
        self.answer_types: list[str] = []
        self.question_types: list[str] = []
        self.raw = _Interner()
        self.flat = array("i")
        self.widths = array("i")

    def add_answers(self, answers: Sequence[Sequence[str]]) -> None:
        """Answers of further questions."""
        number = self.raw.__getitem__
        self.flat.extend(list(map(number, itertools.chain.from_iterable(answers))))
        self.widths.extend(list(map(len, answers)))

    def add_rows(self, rows: Sequence[_Row]) -> None:
        """Rows of a file."""
        self.ids.extend([row.id if row.question_id == "" else row.question_id for row in rows])
        self.images.extend([(row.image or "") if row.image_id == "" else row.image_id for row in rows])
        self.answer_types.extend([row.answer_type for row in rows])
        self.question_types.extend([row.question_type for row in rows])
        try:
            texts = list(map(_TEXT, itertools.chain.from_iterable(map(_ANSWERS, rows))))
        except AttributeError:
            texts = [x if isinstance(x, str) else x.answer for row in rows for x in row.answers]
        self.flat.extend(list(map(self.raw.__getitem__, texts)))
        self.widths.extend([len(row.answers) for row in rows])

    def compile(self, where: str) -> Compiled:
        """Integers. Questions without id or answers and ids that appear twice are a UserError."""
        import numpy as np

        if not self.ids:
            raise UserError(f"{where}: no rows: the file is empty")
        if "" in self.ids:
            raise UserError(f'{where}: row {self.ids.index("")} has no "id" (or "question_id"): add one')
        if 0 in self.widths:
            name = self.ids[self.widths.index(0)]
            raise UserError(f"{where}: row {name!a} has no answers: give at least one (real data has ten)")
        if len(set(self.ids)) < len(self.ids) or isinstance(self.ids[0], str) != isinstance(
            self.ids[-1], str
        ):
            unique_ids(self.ids, where)
        flat = np.frombuffer(self.flat, dtype=np.int32)
        widths = np.frombuffer(self.widths, dtype=np.int32)
        starts = np.cumsum(widths, dtype=np.int64) - widths
        groups = []
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            if len(rows) == len(widths):
                groups.append((rows, np.ascontiguousarray(flat.reshape(-1, width).T)))
            else:
                groups.append((rows, np.stack([flat[starts[rows] + place] for place in range(width)])))
        vocabulary = _Interner()
        number = vocabulary.__getitem__
        forms = [(text, *answer_forms(text)) for text in self.raw]
        table = np.array(list(map(number, itertools.chain.from_iterable(forms))), dtype=np.int32)
        return Compiled(
            self.ids,
            _clusters(self.images),
            _labels(self.answer_types),
            _labels(self.question_types),
            groups,
            dict(zip(FORMS, table.reshape(-1, len(FORMS)).T.copy(), strict=True)),
            dict(vocabulary),
        )


def _labels(labels: list[str]) -> Labels:
    import numpy as np

    names = _Interner()
    codes = np.fromiter(map(names.__getitem__, labels), dtype=np.int32, count=len(labels))
    return Labels([], None) if set(names) <= {""} else Labels(list(names), codes)


def _clusters(keys: list[RowId]) -> np.ndarray | None:
    """Cluster per question; None where all differ. Questions without an image are clusters of their own."""
    import numpy as np

    distinct = len(set(keys))
    if distinct == len(keys) or (distinct == 1 and keys[0] == ""):
        return None
    if isinstance(keys[0], int):
        try:
            return np.unique(np.array(keys, dtype=np.int64), return_inverse=True)[1].astype(np.int32)
        except (ValueError, TypeError, OverflowError):
            pass
    from peftbench.metrics._uncertainty import cluster_codes

    return cluster_codes([str(key) for key in keys])


class _Answer(msgspec.Struct, gc=False):
    answer: str


class _Row(msgspec.Struct, gc=False):
    """One question: of an official annotation file, or a row of ``{"id", "answers"}``."""

    answers: list[_Answer | str]
    question_id: int | str = ""
    id: int | str = ""
    image_id: int | str = ""
    image: int | str | None = ""
    answer_type: str = ""
    question_type: str = ""


class _Official(msgspec.Struct):
    annotations: list[_Row]


def load_references(path: Path, use_cache: bool = True) -> Compiled:
    """References of a file: official annotations, a JSON array, or JSON lines; compiled where kept.

    Raises UserError naming the row for bad rows and for ids that appear twice.
    """
    if not path.is_file():
        raise UserError(f"references {path}: no such file: check the path")
    folder = _cache.cache_dir() if use_cache else None
    if folder is None:
        return _compile_file(path)
    stored = folder / "vqa" / f"{_cache.file_digest(path)}-{FORMAT}.msgpack"
    kept = _read_compiled(stored)
    if kept is None:
        kept = _compile_file(path)
        _write_compiled(stored, kept)
    return kept


def _fast_chunks(path: Path) -> Iterator[list[_Row]]:
    """Rows of a well-formed file, a few megabytes of text at a time; DecodeError where the file is not so.

    A JSON array is cut between its objects, at the text that stands between the first two of them. Where that
    text also occurs inside a string, or the cut fails for any other reason, decoding fails and the slow way
    is taken.
    """
    with path.open("rb") as handle:
        block = handle.read(BLOCK).removeprefix(b"\xef\xbb\xbf")
        opening = _ARRAY_OPENING.match(block)
        if opening is None:
            lines = msgspec.json.Decoder(_Row)
            while block:
                cut = block.rfind(b"\n") + 1
                more = handle.read(BLOCK)
                if cut or not more:
                    yield lines.decode_lines(block[:cut] if more else block)
                block = block[cut:] + more if more else b""
            return
        if not opening["record"]:
            raise msgspec.DecodeError("no rows")
        rest = block[opening.start("record") :]
        between = re.search(rb"\}\s*,\s*" + re.escape(opening["record"]), rest)
        joint = between.group() if between else b"}," + opening["record"]
        rows = msgspec.json.Decoder(list[_Row])
        while more := handle.read(BLOCK):
            cut = rest.rfind(joint)
            if cut >= 0:
                yield rows.decode(b"[" + rest[: cut + 1] + b"]")
                rest = rest[cut + len(joint) - len(opening["record"]) :]
            rest += more
        if opening["key"]:
            yield msgspec.json.decode(b'{"annotations":[' + rest, type=_Official).annotations
        else:
            yield rows.decode(b"[" + rest)


def _slow_chunks(path: Path) -> Iterator[list[_Row]]:
    """Rows of any file, one at a time, so that the first bad one is a UserError that names it."""
    data = read_bytes(path, "references")
    if _ARRAY_OPENING.match(data[:BLOCK]):
        try:
            content = json.loads(data)
        except ValueError as error:
            if b"\n" not in data.strip():
                raise UserError(f"references {path}: not JSON ({error}): check the file") from None
        else:
            rows = content.get("annotations") if isinstance(content, dict) else content
            for number, row in enumerate(rows if isinstance(rows, list) else []):
                yield [convert_row(row, _Row, f"references {path} row {number}")]
            return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield [decode_one(line, _Row, f"references {path} line {number}")]


def _compile_file(path: Path) -> Compiled:
    columns = _Columns()
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them in a cycle: looking for cycles only costs time
    try:
        for rows in _fast_chunks(path):
            columns.add_rows(rows)
    except (msgspec.DecodeError, UnicodeDecodeError):
        columns = _Columns()
        for rows in _slow_chunks(path):
            columns.add_rows(rows)
    finally:
        if collecting:
            gc.enable()
    return columns.compile(f"references {path}")


class _Stored(msgspec.Struct, array_like=True):
    """``Compiled`` as it is kept: arrays as bytes."""

    ids: list[int | str]
    images: bytes
    answer_types: tuple[list[str], bytes]
    question_types: tuple[list[str], bytes]
    groups: list[tuple[bytes, int, bytes]]
    forms: bytes
    vocabulary: list[str]


def _write_compiled(path: Path, compiled: Compiled) -> None:
    import numpy as np

    def packed(codes: np.ndarray | None) -> bytes:
        return b"" if codes is None else codes.astype(np.int32).tobytes()

    try:
        data = msgspec.msgpack.encode(
            _Stored(
                compiled.ids,
                packed(compiled.images),
                (compiled.answer_types.names, packed(compiled.answer_types.codes)),
                (compiled.question_types.names, packed(compiled.question_types.codes)),
                [(rows.tobytes(), len(raw), raw.tobytes()) for rows, raw in compiled.groups],
                np.stack([compiled.forms[name] for name in FORMS]).tobytes(),
                list(compiled.vocabulary),
            )
        )
    except UnicodeEncodeError:  # lone surrogates have no form on disk: such references are compiled each time
        return
    _cache.prune(path.parent)
    _cache.write_cached(path, lambda temporary: temporary.write_bytes(data))


def _read_compiled(path: Path) -> Compiled | None:
    import numpy as np

    try:
        stored = msgspec.msgpack.decode(path.read_bytes(), type=_Stored)
    except (OSError, msgspec.DecodeError):
        return None

    def codes(data: bytes) -> np.ndarray | None:
        return np.frombuffer(data, dtype=np.int32) if data else None

    table = np.frombuffer(stored.forms, dtype=np.int32).reshape(len(FORMS), -1)
    return Compiled(
        list(stored.ids),
        codes(stored.images),
        Labels(stored.answer_types[0], codes(stored.answer_types[1])),
        Labels(stored.question_types[0], codes(stored.question_types[1])),
        [
            (np.frombuffer(rows, dtype=np.int64), np.frombuffer(ids, dtype=np.int32).reshape(width, -1))
            for rows, width, ids in stored.groups
        ],
        dict(zip(FORMS, table, strict=True)),
        dict(zip(stored.vocabulary, range(len(stored.vocabulary)), strict=True)),
    )
