"""From a row of a table to the fields of an example."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from peftbench.data.example import Example
from peftbench.data.tables.expressions import BadRow, compiled, is_missing
from peftbench.data.tables.spec import Row

_KINDS: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def needed_paths(row: Row) -> set[str]:
    """Paths that a row's expressions read."""
    texts = [row.id, row.question, row.answer, row.answers, row.question_type, row.answer_type, *row.facts]
    texts += [row.choices] if isinstance(row.choices, str) else row.choices
    return set().union(*(compiled(text).paths for text in texts if text))


def exploded(row: dict[str, Any], columns: list[str]) -> Iterator[dict[str, Any]]:
    """One row per position of the parallel lists; ``BadRow`` where they are no lists of one length."""
    if not columns:
        yield row
        return
    lists = [compiled(column)(row) for column in columns]
    for column, values in zip(columns, lists, strict=True):
        if not isinstance(values, list):
            raise BadRow(f"{column!r} is no list, so it cannot be exploded")
    lengths = [len(values) for values in lists]
    if len(set(lengths)) > 1:
        raise BadRow(
            f"{', '.join(columns)} have {', '.join(map(str, lengths))} elements: they must go together"
        )
    for item, values in enumerate(zip(*lists, strict=True)):
        yield row | dict(zip(columns, values, strict=True)) | {"_item": item}


def row_id(row: Row, values: Mapping[str, Any], image: str) -> str:
    """The id of an example: as the file says, else a hash of its content, ``image`` being the image's identity."""
    if row.id:
        found = compiled(row.id)(values)
        if is_missing(found) or found == "":
            raise BadRow("its id is empty")
        return _as_text(found, row.id)
    texts = [row.question, row.answer, row.answers]
    texts += [row.choices] if isinstance(row.choices, str) else row.choices
    content = [compiled(text)(values) if text else None for text in texts]
    return hashlib.sha256(msgspec.json.encode([*content, image])).hexdigest()[:16]


def examples(row: Row, values: Mapping[str, Any], name: str, sha256: str, split: str) -> Iterator[Example]:
    """The example of a row, or several with ``target: each``; ``BadRow`` says what is wrong with it."""
    choices = _choices(row, values)
    index = _index(row, values, choices)
    answers = _answers(row, values, choices, index)
    each = row.target == "each" and split == "train"
    facts = {fact: _plain(compiled(fact)(values)) for fact in row.facts}
    for number, target in enumerate(answers if each else [_target(row, answers, choices, index)]):
        if not target.strip():
            raise BadRow("there is nothing to train on (empty target)")
        yield Example(
            id=f"{name}#{number}" if each else name,
            image=sha256,
            question=_text(row.question, values),
            choices=choices,
            answer_index=index,
            answers=answers,
            target=target.strip(),
            question_type=_text(row.question_type, values),
            answer_type=_text(row.answer_type, values),
            split=split,
            source=msgspec.json.encode(facts, order="sorted").decode(),
        )


def _text(expression: str, values: Mapping[str, Any]) -> str:
    value = compiled(expression)(values) if expression else None
    return "" if is_missing(value) else _as_text(value, expression).strip()


def _as_text(value: Any, expression: str) -> str:
    """A value as text; ``BadRow`` for what is no single value, which would become a text of Python."""
    if isinstance(value, list | dict | bytes):
        raise BadRow(f"{expression!r} is {_KINDS[type(value)]}, not a text: name a part of it")
    return str(value)


def _plain(value: Any) -> Any:
    """A fact as JSON can hold it: no NaN, no bytes."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _choices(row: Row, values: Mapping[str, Any]) -> list[str]:
    if not row.choices:
        return []
    if isinstance(row.choices, str):
        found = compiled(row.choices)(values)
        if not isinstance(found, list):
            raise BadRow(f"its choices are no list but {type(found).__name__}")
    else:
        found = [compiled(choice)(values) for choice in row.choices]
        while found and (is_missing(found[-1]) or found[-1] == ""):
            found.pop()
    named = row.choices if isinstance(row.choices, str) else "a choice"
    choices = ["" if is_missing(choice) else _as_text(choice, named) for choice in found]
    if not choices:
        raise BadRow("it has no choices")
    if not all(choice.strip() for choice in choices):
        raise BadRow("one of its choices is empty")
    return choices


def _index(row: Row, values: Mapping[str, Any], choices: list[str]) -> int:
    if not row.answer:
        return -1
    value = compiled(row.answer)(values)
    index = -1
    if row.answer_is == "text":
        index = choices.index(str(value)) if str(value) in choices else -1
    elif row.answer_is == "letter":
        letter = str(value).strip().upper()
        index = _LETTERS.index(letter) if len(letter) == 1 and letter in _LETTERS else -1
    else:
        with contextlib.suppress(TypeError, ValueError):
            index = int(value)
    if not 0 <= index < len(choices):
        raise BadRow(f"its answer {value!r} is none of its {len(choices)} choices")
    return index


def _answers(row: Row, values: Mapping[str, Any], choices: list[str], index: int) -> list[str]:
    if not row.answers:
        return [_LETTERS[index] if row.target == "letter" else choices[index]]
    found = compiled(row.answers)(values)
    listed = found if isinstance(found, list) else [found]
    answers = [_as_text(answer, row.answers) for answer in listed if not is_missing(answer)]
    if not any(answer.strip() for answer in answers):
        raise BadRow("it has no answers")
    if row.annotators and len(answers) != row.annotators:
        raise BadRow(f"it has {len(answers)} answers, not {row.annotators}")
    return answers


def _target(row: Row, answers: list[str], choices: list[str], index: int) -> str:
    if row.target == "letter":
        return _LETTERS[index]
    if row.target == "choice":
        return choices[index]
    return Counter(answers).most_common(1)[0][0] if row.target == "most_common" else answers[0]
