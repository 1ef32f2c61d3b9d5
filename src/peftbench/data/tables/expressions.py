"""The small language in which a data set file says where a value of a row comes from.

==============================  =====================================================================
``question``                    the column of that name
``answers[].answer``            the field of every element of a list; also ``a.b`` and ``a[0]``
``raw | json``                  a value passed through functions, left to right (``FUNCTIONS``)
``COCO_{image_id:012d}.jpg``    a text with values in it, each an expression, perhaps with a format
``= yes``                       the text itself
==============================  =====================================================================

Every row also has ``_row`` (its number in the table, from 0), ``_file`` (the file or archive member it stands
in) and ``_folder`` (the last folder of that name).
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from peftbench.errors import UserError, did_you_mean

_TOKEN = re.compile(r"([^.\[\]]+)|\[(\d*)\]")
_FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
SPECIAL = ("_row", "_file", "_folder")
"""Columns that every table has."""


class BadRow(Exception):
    """A row that cannot become an example; the text says why."""


class MissingColumn(BadRow):
    """A row lacks a column."""

    def __init__(self, column: str, columns: Mapping[str, Any]) -> None:
        known = [name for name in columns if name not in SPECIAL]
        super().__init__(f"no column {column!r}{did_you_mean(column, known)}")


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: null, or the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _python(value: Any, _: str) -> Any:
    return value if not isinstance(value, str) else ast.literal_eval(value)


def _json(value: Any, _: str) -> Any:
    return value if not isinstance(value, str | bytes) else json.loads(value)


def _base(value: Any, _: str) -> str:
    return str(value).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _folder(value: Any, _: str) -> str:
    return str(value).replace("\\", "/").rpartition("/")[0]


FUNCTIONS: dict[str, Callable[[Any, str], Any]] = {
    "json": _json,
    "python": _python,
    "list": lambda value, _: value if isinstance(value, list) else [value],
    "split": lambda value, separator: [part.strip() for part in str(value).split(separator or ",")],
    "base": _base,
    "folder": _folder,
    "stem": lambda value, _: _base(value, "").rpartition(".")[0] or _base(value, ""),
    "strip": lambda value, _: str(value).strip(),
    "lower": lambda value, _: str(value).lower(),
}
"""``json`` and ``python`` read a text written in that language; ``list`` makes a single value a list of one;
``split ;`` cuts a text (at commas by default); ``base`` is the last part of a path or address, ``stem`` that
without its suffix, ``folder`` what stands before it; ``strip`` and ``lower`` are as in Python."""


class Expression:
    """A compiled expression: what it reads (``paths``) and its value in a row."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.paths: set[str] = set()
        self._evaluate: Callable[[Mapping[str, Any]], Any]
        if text.startswith("="):
            literal = text[1:].strip()
            self._evaluate = lambda row: literal
        elif "{" in text:
            self._evaluate = self._template(text)
        else:
            self._evaluate = self._pipeline(text)

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """Its value in a row; ``BadRow`` where the row does not fit."""
        try:
            return self._evaluate(row)
        except BadRow:
            raise
        except (ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise BadRow(f"{self.text!r} has no value ({' '.join(str(error).split())})") from None

    @property
    def columns(self) -> set[str]:
        """Names of the columns that it reads."""
        return {_TOKEN.split(path)[1] or path for path in self.paths}

    def _pipeline(self, text: str) -> Callable[[Mapping[str, Any]], Any]:
        path, *calls = (part.strip() for part in text.split("|"))
        if not path or not _TOKEN.match(path):
            raise UserError(f"{text!r} is no expression: it begins with the name of a column")
        self.paths.add(path)
        get = _getter(path)
        steps = []
        for call in calls:
            name, _, argument = call.partition(" ")
            if name not in FUNCTIONS:
                raise UserError(f"{text!r}: unknown function {name!r}{did_you_mean(name, FUNCTIONS)}")
            steps.append((FUNCTIONS[name], argument.strip()))

        def evaluate(row: Mapping[str, Any]) -> Any:
            value = get(row)
            for function, argument in steps:
                if is_missing(value):
                    return None
                value = function(value, argument)
            return value

        return evaluate

    def _template(self, text: str) -> Callable[[Mapping[str, Any]], str]:
        pieces: list[tuple[str, Callable[[Mapping[str, Any]], Any] | None, str]] = []
        at = 0
        for match in _FIELD.finditer(text):
            pieces.append((text[at : match.start()], self._pipeline(match[1]), match[2] or ""))
            at = match.end()
        rest = text[at:]
        if "{" in rest or "}" in rest or any("}" in before for before, _, _ in pieces):
            raise UserError(f"{text!r} is no template: write {{column}} or {{column:format}}")
        pieces.append((rest, None, ""))

        def evaluate(row: Mapping[str, Any]) -> str:
            out = []
            for before, get, form in pieces:
                out.append(before)
                if get is not None:
                    value = get(row)
                    if is_missing(value) or value == "":
                        raise BadRow(f"{text!r} has no value (a part of it is empty)")
                    if form.endswith("d") and isinstance(value, str):
                        value = int(value)
                    out.append(format(value, form))
            return "".join(out)

        return evaluate


@functools.cache
def compiled(text: str) -> Expression:
    """The expression of that text; ``UserError`` where it is none."""
    return Expression(text)


def _getter(path: str) -> Callable[[Mapping[str, Any]], Any]:
    tokens: list[str | int | None] = []
    for name, index in _TOKEN.findall(path):
        tokens.append(name if name else int(index) if index else None)
    first, rest = tokens[0], tokens[1:]

    def get(row: Mapping[str, Any]) -> Any:
        if path in row:  # also a column whose name has dots
            return row[path]
        if first not in row:
            raise MissingColumn(str(first), row)
        return _walk(row[first], rest) if rest else row[first]  # type: ignore[index]

    return get


def _walk(value: Any, tokens: list[str | int | None]) -> Any:
    for place, token in enumerate(tokens):
        if value is None:
            return None
        if token is None:
            return [_walk(element, tokens[place + 1 :]) for element in value]
        value = value[token]
    return value


def pruned(row: Mapping[str, Any], paths: set[str]) -> dict[str, Any]:
    """Only what the paths need of a row, in the same structure: what a join keeps."""
    tree: dict[str, Any] = {}
    for path in paths:
        here = tree
        for name, _ in _TOKEN.findall(path):
            if name:
                here = here.setdefault(name, {})
        here[""] = True  # the whole of it
    kept = {name: _prune(row[name], below) for name, below in tree.items() if name in row}
    return kept | {path: row[path] for path in paths if path in row}


def _prune(value: Any, tree: dict[str, Any]) -> Any:
    if "" in tree or value is None:
        return value
    if isinstance(value, list):
        return [_prune(element, tree) for element in value]
    if isinstance(value, Mapping):
        return {name: _prune(value[name], below) for name, below in tree.items() if name in value}
    return value
