"""Replies kept as they arrive: a job that is killed does not pay for them again."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from peftbench.canonical import digest
from peftbench.judging.base import Item, Reply
from peftbench.store import no_space_in_one_line

if TYPE_CHECKING:
    from peftbench.spec import JudgeSpec

REPLIES_FILE = "replies.jsonl"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file."""

    asked: str
    """Digest of what was asked, of whom."""
    reply: Reply


class Staging:
    """The replies so far, one per line; a line that a kill cut off is dropped."""

    def __init__(self, folder: Path, spec: JudgeSpec) -> None:
        self.path = folder / REPLIES_FILE
        # What is made of the replies is not part of the question.
        self._judge = msgspec.to_builtins(msgspec.structs.replace(spec, prompt="-", scale="-", tolerated=0.0))
        self._lock = threading.Lock()
        self._found: dict[str, Reply] = {}
        with no_space_in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            whole = self._read()
            with self.path.open("ab") as stream:
                stream.truncate(whole)

    def _read(self) -> int:
        """Take in the rows; returns how many bytes of the file they are."""
        size = 0
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        for line in data.splitlines(keepends=True):
            try:
                row = msgspec.json.decode(line, type=Row)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._found[row.asked] = row.reply
            size += len(line)
        return size

    def known(self, item: Item) -> Reply | None:
        """The reply to an item, if it is there."""
        return self._found.get(self._asked(item))

    def keep(self, item: Item, reply: Reply) -> None:
        """Store a reply; it is on the disk when this returns. Safe to call from several threads."""
        row = Row(asked=self._asked(item), reply=reply)
        line = json.dumps(msgspec.to_builtins(row)).encode() + b"\n"  # json: lone surrogates are allowed
        with self._lock, no_space_in_one_line(self.path), self.path.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def _asked(self, item: Item) -> str:
        return digest([self._judge, item.id, item.prompt])
