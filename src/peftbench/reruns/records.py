"""The records in a results folder, found by the names of their folders and read when they are asked for."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import msgspec

from peftbench.errors import UserError
from peftbench.store import RECORD, Record, read_record

NO_RESULTS = ("images", "cache", "logs", "tables", "figures", "report")
"""Folders of the results folder that hold no results with digests."""
DIGEST = re.compile(r"-([0-9a-f]{16})$")


def digest_in(name: str) -> str | None:
    """The digest that a folder's name ends in, if it does."""
    found = DIGEST.search(name)
    return found.group(1) if found else None


def result_folders(results: Path) -> Iterator[tuple[str, Path]]:
    """(digest, folder) of every folder that is named as a result is, whether it holds a record or not.

    Of what lies inside a result only further results are looked at. The folders ``base-<digest>``, which hold
    the answers of untuned models and are no results themselves, come too: they never have a record.
    """
    if not results.is_dir():
        return
    waiting = [p for p in sorted(results.iterdir()) if p.is_dir() and p.name not in NO_RESULTS]
    while waiting:
        folder = waiting.pop()
        if folder.name.startswith(".") or folder.is_symlink():
            continue
        digest = digest_in(folder.name)
        if digest:
            yield digest, folder
        try:
            inside = [path for path in folder.iterdir() if digest is None or digest_in(path.name)]
        except OSError:
            continue
        waiting.extend(path for path in inside if path.is_dir())


class Store:
    """All records below a results folder. A broken one is named in ``broken`` and otherwise not there."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.broken: list[str] = []
        self._checked: dict[str, Record | None] = {}

    @cached_property
    def places(self) -> dict[str, Path]:
        """Digest -> folder, of all results that have a record."""
        return {d: folder for d, folder in result_folders(self.results) if (folder / RECORD).exists()}

    @cached_property
    def all(self) -> dict[str, Record]:
        """Digest -> record as it was read, its content not held against its digest (see ``record``)."""
        found = {}
        for digest, folder in self.places.items():
            try:
                record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
                if record.digest != digest:
                    raise ValueError(f"it is of digest {record.digest}")
                found[digest] = record
            except (OSError, ValueError) as error:
                self.broken.append(f"{folder / RECORD}: not a record ({error}): skipped")
        return found

    def record(self, digest: str) -> Record | None:
        """The record of a digest, its content held against it; None where there is none or it is broken."""
        if digest not in self._checked:
            folder = self.places.get(digest)
            try:
                record = read_record(folder / RECORD) if folder else None
                if record is not None and record.digest != digest:
                    raise UserError(f"{folder}/{RECORD}: it is of digest {record.digest}")
                self._checked[digest] = record
            except UserError as error:
                if not any(line.startswith(f"{folder}/") for line in self.broken):
                    self.broken.append(f"{error}: skipped")
                self._checked[digest] = None
        return self._checked[digest]

    def of_stage(self, stage: str) -> list[Record]:
        """All records of a stage, unchecked."""
        return [record for record in self.all.values() if record.stage == stage]


def started(record: Record) -> str:
    """When a result was made: ISO 8601, empty where the record does not say."""
    return str(record.provenance.get("started", ""))


def wall_seconds(record: Record) -> float:
    """What a result cost in time; infinite where the record holds nonsense."""
    seconds = record.provenance.get("wall_seconds")
    usable = isinstance(seconds, int | float) and 0 <= seconds < float("inf")
    return float(seconds) if usable else float("inf")  # type: ignore[arg-type] # checked above
