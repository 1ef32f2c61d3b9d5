"""Whether the files of a result are still those that its record names."""

import hashlib
from pathlib import Path, PurePosixPath

from peftbench.errors import UserError
from peftbench.store import RECORD, Record

FINGERPRINT_EXEMPT = "compares files with their checksums; does not compute results"
LARGEST = 2 * 10**9
"""Bytes of one file that are read for this: seconds. Larger ones are compared by nothing."""


def check_outputs(folder: Path, record: Record) -> None:
    """Hold the files of a result against the sha256 in its record (``outputs``), where it has some.

    ``UserError`` where one is missing, cannot be read, lies outside of the folder, or was changed.
    """
    outputs = record.facts.get("outputs")
    if not isinstance(outputs, dict):
        return
    for name, wanted in outputs.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{folder / RECORD}: outputs: {name!r} lies outside of the folder: delete it and run again"
            )
        file = folder / path
        try:
            if file.stat().st_size > LARGEST:
                continue
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}: delete {folder / RECORD} and run again") from None
        if found != wanted:
            raise UserError(
                f"{file}: changed since it was made (its sha256 is another than in {RECORD}): delete "
                f"{folder / RECORD} and run again"
            )
