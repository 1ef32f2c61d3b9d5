"""Notes of jobs that failed, kept apart from results: ``.failed/<digest>.json`` in the results folder.

A run that fails for good leaves a note and, in the place of its result, a record that says so: with it, what is made
from the run is made too, tables included. When its Snakemake ends, those records go again
(``peftbench.reruns.failed``), so that the next one tries the run anew. A job that fails otherwise leaves a note alone.
The note stays until the job succeeds, for whoever asks what became of it.
"""

import contextlib
from pathlib import Path

from peftbench.errors import UserError
from peftbench.store import FAILED, RECORD, Record, atomic_json, directory_digest, read_record

FINGERPRINT_EXEMPT = "tells what failed; does not compute results"
NOTES = ".failed"


def note_file(results: Path, digest: str) -> Path:
    """Where the note of a job is, if it failed when it was last tried."""
    return results / NOTES / f"{digest}.json"


def note_failure(results: Path, record: Record) -> None:
    """Keep what is known of a failed job; its reason is among the facts of the record."""
    atomic_json(note_file(results, record.digest), record)


def forget_failure(results: Path, digest: str) -> None:
    """The job has succeeded."""
    note_file(results, digest).unlink(missing_ok=True)


def noted(results: Path) -> set[str]:
    """Digests of all jobs of which there is a note."""
    try:
        return {path.stem for path in (results / NOTES).iterdir() if path.suffix == ".json"}
    except OSError:
        return set()


def read_failure(results: Path, digest: str) -> Record | None:
    """The note of a job; None where there is none, or one that cannot be read."""
    try:
        record = read_record(note_file(results, digest))
    except UserError:
        return None
    return record if record.digest == digest and FAILED in record.facts else None


def result_or_failure(folder: Path, results: Path) -> Record | None:
    """The record in a result's folder, else the note of why there is none, else None; ``UserError`` if damaged."""
    path = folder / RECORD
    if path.exists():
        return read_record(path)
    with contextlib.suppress(UserError):
        return read_failure(results, directory_digest(folder))
    return None
