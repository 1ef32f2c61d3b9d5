"""VQA references compiled to integers: each distinct answer is normalised once.

A question becomes the ids of its distinct answers, each with the pattern of annotators who gave it, so that
scoring a prediction is comparing one integer with a few. References read from a file are kept by its digest
(``_cache``): the second evaluation on the same file maps a few megabytes into memory.
"""

from __future__ import annotations

import gc
import itertools
import json
import mmap
import operator
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from peftbench.errors import UserError
from peftbench.metrics import _cache
from peftbench.metrics._rows import RowId, convert_row, decode_one, read_bytes, unique_ids
from peftbench.metrics._vqa_text import FORMS, all_forms

if TYPE_CHECKING:
    import numpy as np

FORMAT = 2
"""Version of the compiled form on disk; part of its name, so that another version is simply not found."""
BLOCK = 1 << 17
"""Bytes of text decoded at a time: small enough to stay in the cache of one core."""
_ARRAY_OPENING = re.compile(
    rb'\s*(?:\{.{0,65536}?(?P<key>"annotations")\s*:\s*)?\[\s*(?P<record>\{\s*"[^"\\]*"\s*:)?', re.DOTALL
)
"""Where the array of rows begins, in an official file or a bare array, and how its first row begins."""
_TEXT = operator.attrgetter("answer")
_ANSWERS = operator.attrgetter("answers")
KINDS = ("same", "alike", "mixed")
"""How the answers to a question compare: one string, one string once they are clean, more than one."""
MAX_PATTERN_BITS = 10
"""Up to so many answers per question, the accuracy of each pattern of matches is looked up in a table."""
PATTERN_BLOCK = 8192
"""Questions whose answers are compared with one another at a time: small arrays stay in the cache of a core."""
ALIGNMENT = 64
"""Bytes; each array of a compiled file begins at a multiple of it."""


class Labels(msgspec.Struct):
    """A label per question: names, and the position of each question's in them [n], or none."""

    names: list[str]
    codes: np.ndarray | None


class Group(msgspec.Struct):
    """Questions with the same number of answers that compare in the same way."""

    width: int
    """Answers per question."""
    kind: str
    """One of ``KINDS``."""
    reach: list[int]
    """How many of the questions have more than 0, 1, 2, ... distinct answers."""
    rows: np.ndarray
    """Positions of the questions, int32 [m]; those with the most distinct answers first."""
    answers: np.ndarray
    """Raw ids of the first answers of all questions, the second ones of the first ``reach[1]``, ..., int32."""
    patterns: np.ndarray
    """Which annotators gave each of these answers, a bit for each, uint16.

    Questions of more than ``MAX_PATTERN_BITS`` answers have no patterns, and all their answers are listed.
    """


class Compiled(msgspec.Struct):
    """References of n questions."""

    ids: list[RowId]
    images: np.ndarray | None
    """Cluster of each question, int32 [n]; None where no two questions share an image."""
    answer_types: Labels
    question_types: Labels
    groups: list[Group]
    forms: dict[str, np.ndarray]
    """Per form (see ``FORMS``) the id in ``vocabulary`` of that form of each raw answer, int32 [answers]."""
    vocabulary: dict[str, int]
    """Ids of all forms; raw answers come first."""


class Interner(dict[str, int]):
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


class _LabelColumn:
    """A growing column of labels, as integers at once: their strings are not kept."""

    def __init__(self) -> None:
        self.names = Interner()
        self.codes = array("i")

    def extend(self, labels: Iterable[str]) -> None:
        """Labels of further questions."""
        self.codes.extend(list(map(self.names.__getitem__, labels)))

    def labels(self) -> Labels:
        """All of them; none where all are empty."""
        import numpy as np

        if set(self.names) <= {""}:
            return Labels([], None)
        kind = np.uint8 if len(self.names) <= 256 else np.int32
        return Labels(list(self.names), np.frombuffer(self.codes, dtype=np.int32).astype(kind))


class _Columns:
    """References on their way to integers: ids, labels, and one growing array of answer ids."""

    def __init__(self) -> None:
        self.ids: list[RowId] = []
        self.images: list[RowId] = []
        self.answer_types = _LabelColumn()
        self.question_types = _LabelColumn()
        self.raw = Interner()
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
        number = self.raw.__getitem__
        try:
            numbers = list(map(number, map(_TEXT, itertools.chain.from_iterable(map(_ANSWERS, rows)))))
        except AttributeError:  # some answers are strings
            numbers = [number(x if isinstance(x, str) else x.answer) for row in rows for x in row.answers]
        self.flat.extend(numbers)
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
        vocabulary = Interner(self.raw)
        number = vocabulary.__getitem__
        forms = {
            name: np.array(list(map(number, texts)), dtype=np.int32)
            for name, texts in all_forms(list(self.raw)).items()
        }
        return Compiled(
            self.ids,
            _clusters(self.images),
            self.answer_types.labels(),
            self.question_types.labels(),
            _group_questions(flat, widths, forms["cleaned"]),
            forms,
            dict(vocabulary),
        )


def _group_questions(flat: np.ndarray, widths: np.ndarray, cleaned: np.ndarray) -> list[Group]:
    """Groups of questions, from the raw answer ids of all of them, the number of each, and the cleaned forms."""
    import numpy as np

    groups = []
    starts = np.cumsum(widths, dtype=np.int64) - widths
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width).astype(np.int32)
        raw = (
            flat.reshape(-1, width)
            if len(rows) == len(widths)
            else flat[starts[rows, None] + np.arange(width)]
        )
        kinds = np.full(len(rows), KINDS.index("mixed"), dtype=np.uint8)
        some = np.flatnonzero(cleaned[raw[:, 0]] == cleaned[raw[:, -1]])
        kinds[some[_agree(cleaned[raw[some]])]] = KINDS.index("alike")
        kinds[some[_agree(raw[some])]] = KINDS.index("same")
        for code, kind in enumerate(KINDS):
            chosen = np.flatnonzero(kinds == code)
            if len(chosen):
                groups.append(_group(kind, rows[chosen], raw[chosen]))
    return groups


def _agree(answers: np.ndarray) -> np.ndarray:
    """Whether all answers to a question are one, bool [m], for ids [m, width]."""
    return (answers == answers[:, :1]).all(axis=1)


def _group(kind: str, rows: np.ndarray, raw: np.ndarray) -> Group:
    """A group of the questions ``rows`` [m] with raw answer ids [m, width]."""
    import numpy as np

    count, width = raw.shape
    if width > MAX_PATTERN_BITS:
        return Group(width, kind, [count] * width, rows, raw.T.ravel(), np.zeros(0, dtype=np.uint16))
    patterns = _patterns(raw)
    # An answer is listed where the first annotator gave it: no lower bit of its pattern is set.
    first = (patterns & ((1 << np.arange(width)) - 1).astype(np.uint16)) == 0
    distinct = first.sum(axis=1, dtype=np.uint8)
    order = np.argsort(width - distinct, kind="stable")
    reach = [int(np.count_nonzero(distinct > place)) for place in range(distinct.max())]
    listed = np.flatnonzero(first)
    starts = (np.cumsum(distinct, dtype=np.int64) - distinct)[order]
    chosen = np.concatenate([listed[starts[:some] + place] for place, some in enumerate(reach)])
    return Group(width, kind, reach, rows[order], raw.ravel()[chosen], patterns.ravel()[chosen])


def _patterns(raw: np.ndarray) -> np.ndarray:
    """Which annotators gave the same answer as each annotator, a bit for each, uint16 [m, width]."""
    import numpy as np

    count, width = raw.shape
    patterns = np.empty((count, width), dtype=np.uint16)
    for start in range(0, count, PATTERN_BLOCK):
        columns = raw[start : start + PATTERN_BLOCK].T.copy()
        bits = np.zeros(columns.shape, dtype=np.uint16)
        for one in range(width):
            bits[one] |= np.uint16(1 << one)
            for other in range(one):
                same = (columns[one] == columns[other]).astype(np.uint16)
                bits[one] |= same << np.uint16(other)
                bits[other] |= same << np.uint16(one)
        patterns[start : start + PATTERN_BLOCK] = bits.T
    return patterns


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

    codes = cluster_codes([str(key) for key in keys])
    return None if codes is None else codes.astype(np.int32)


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
    stored = folder / "vqa" / f"{_cache.file_digest(path)}-{FORMAT}.compiled"
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
    """``Compiled`` as it is kept, without its arrays: they follow, and ``arrays`` has their types and lengths.

    They are, with length 0 for none: images, codes of the answer types and of the question types, each form,
    and per group its rows, answers and patterns.
    """

    ids: list[int | str]
    answer_types: list[str]
    question_types: list[str]
    groups: list[tuple[int, str, list[int]]]
    vocabulary: list[str]
    arrays: list[tuple[str, int]]


def _write_compiled(path: Path, compiled: Compiled) -> None:
    import numpy as np

    none = np.zeros(0, dtype=np.int32)
    optional = (compiled.images, compiled.answer_types.codes, compiled.question_types.codes)
    arrays = [none if codes is None else codes for codes in optional]
    arrays += [compiled.forms[name] for name in FORMS]
    arrays += [array for group in compiled.groups for array in (group.rows, group.answers, group.patterns)]
    try:
        header = msgspec.msgpack.encode(
            _Stored(
                compiled.ids,
                compiled.answer_types.names,
                compiled.question_types.names,
                [(group.width, group.kind, group.reach) for group in compiled.groups],
                list(compiled.vocabulary),
                [(array.dtype.str, len(array)) for array in arrays],
            )
        )
    except UnicodeEncodeError:  # lone surrogates have no form on disk: such references are compiled each time
        return
    data = bytearray(len(header).to_bytes(8, "little") + header)
    for part in arrays:
        data += bytes(-len(data) % ALIGNMENT)
        data += part.tobytes()
    _cache.prune(path.parent)
    _cache.write_cached(path, lambda temporary: temporary.write_bytes(data))


def _read_compiled(path: Path) -> Compiled | None:
    """Compiled references whose arrays lie in the file itself; None where there is no sound file."""
    import numpy as np

    try:
        with path.open("rb") as handle:
            # Mapped, not read: memory for a copy costs more than the work that is done on it. The file is
            # never written again under its name, and what is mapped outlives its removal.
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        place = 8 + int.from_bytes(data[:8], "little")
        stored = msgspec.msgpack.decode(memoryview(data)[8:place], type=_Stored)
        arrays = []
        for kind, length in stored.arrays:
            place += -place % ALIGNMENT
            arrays.append(np.frombuffer(data, dtype=kind, count=length, offset=place))
            place += arrays[-1].nbytes
    except (OSError, ValueError, TypeError, msgspec.DecodeError):
        return None
    images, answer_codes, question_codes = [codes if len(codes) else None for codes in arrays[:3]]
    rest = iter(arrays[3:])
    forms = {name: next(rest) for name in FORMS}
    return Compiled(
        stored.ids,
        images,
        Labels(stored.answer_types, answer_codes),
        Labels(stored.question_types, question_codes),
        [Group(*facts, next(rest), next(rest), next(rest)) for facts in stored.groups],
        forms,
        dict(zip(stored.vocabulary, range(len(stored.vocabulary)), strict=True)),
    )
