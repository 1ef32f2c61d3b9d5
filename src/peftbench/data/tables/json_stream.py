"""Rows of a large JSON file one at a time: the annotations of VQAv2 are 370 MB in one list."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from json import JSONDecodeError
from typing import IO, Any

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


class _Text:
    """A window over a text that is read as needed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Step over the next character; ``ValueError`` where it is another one."""
        found = self.peek()
        if found not in expected or not found:
            raise ValueError(f"{found or 'the end'!r} stands where {' or '.join(expected)} is expected")
        self._at += 1

    def value(self) -> Any:
        """The next whole value; ``ValueError`` where there is none."""
        self.peek()
        step = _CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except JSONDecodeError as error:
                if self._more(step):
                    step *= 2  # a large value is not tried again for every chunk of it
                    continue
                raise ValueError(error.msg) from None
            cut = self._text[end : end + 1] not in tuple(",]}" + _SPACE)
            if cut and not isinstance(value, str | list | dict) and self._more():
                continue  # a number may go on in the next chunk: 12 and then .5
            self._at = end
            return value

    def _more(self, size: int = _CHUNK) -> bool:
        if self._ended:
            return False
        data = self._stream.read(size)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(data)


def json_rows(stream: IO[bytes], field: str) -> Iterator[Any]:
    """Rows of a JSON document: the elements of the list under ``field`` (``a.b`` for nested keys).

    Without ``field``: those of the list that the document is, or the document itself, as one row. Raises
    ``ValueError`` with one line where the document is broken or has no such list.
    """
    text = _Text(stream)
    if not field:
        if text.peek() == "[":
            yield from _elements(text)
        else:
            yield text.value()
    else:
        yield from _below(text, field.split("."), field)
        return  # what follows the list is of no interest
    if text.peek():
        raise ValueError("there is more after the end of the document")


def _below(text: _Text, keys: list[str], field: str) -> Iterator[Any]:
    if text.peek() != "{":
        raise ValueError(f"there is no key {field!r}")
    names = []
    text.take("{")
    while text.peek() != "}":
        name = text.value()
        names.append(str(name))
        text.take(":")
        if name == keys[0]:
            if keys[1:]:
                yield from _below(text, keys[1:], field)
            elif text.peek() == "[":
                yield from _elements(text)
            else:
                raise ValueError(f"{field!r} is no list")
            return
        if text.peek() == "[":
            for _ in _elements(text):
                pass  # a long list before ours need not fit into memory
        else:
            text.value()
        if text.peek() != "}":
            text.take(",")
    raise ValueError(f"there is no key {field!r}; there is {', '.join(names)}")


def _elements(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.peek() == "]":
            text.take("]")
            return
        text.take(",")
