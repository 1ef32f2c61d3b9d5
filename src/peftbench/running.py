"""What runs at this moment, for whoever wants to watch: small files in ``.running`` in the results folder.

A Snakemake leaves ``run-<id>.json`` with all jobs that it is going to run, a job ``<digest>.json`` with how far it is.
Both go with their process; those of killed ones are told by their locks (``peftbench.lease``), not by times.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.canonical import canonical_json
from peftbench.errors import UserError
from peftbench.lease import holding
from peftbench.provenance import used_gpus
from peftbench.store import atomic_bytes

FINGERPRINT_EXEMPT = "tells what runs; does not compute"
FOLDER = ".running"
VARIABLE = "PEFTBENCH_STATE_FILE"
"""Environment variable of a job and of what it starts: its file."""
INTERVAL = 2.0
"""Seconds between two states of a job."""


class Planned(Struct, frozen=True, kw_only=True):
    """A job that a Snakemake is going to run; paths relative to its folder."""

    stage: str
    label: str
    record: str
    """Record, or marker of a view."""
    log: str = ""


class Run(Struct, frozen=True, kw_only=True):
    """A Snakemake at work."""

    who: str
    folder: str
    """Where relative paths start."""
    root: str
    """The project's folder."""
    config: dict[str, Any]
    jobs: dict[str, Planned]
    failed_before: dict[str, str]
    """Digest -> when it was started, of notes of failures from before."""
    started: float


class State(Struct, frozen=True, kw_only=True):
    """How far a job is."""

    digest: str
    stage: str
    label: str
    who: str
    log: str = ""
    what: str = ""
    """``train``, ``predict``: what is counted."""
    done: int = 0
    total: int = 0
    note: str = ""
    """Such as ``loss 0.1234``."""
    elapsed: float = 0.0
    """Seconds since it began, when this was written."""
    left: float | None = None
    """Seconds to go, by its own reckoning."""
    gpus: int = 0


@contextlib.contextmanager
def announced_run(results: Path, run: Run) -> Iterator[None]:
    """Tell what a Snakemake is going to run for as long as the block lasts; whatever hinders that hinders nothing."""
    name = f"run-{os.urandom(4).hex()}"
    file = results / FOLDER / f"{name}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, UserError):
            stack.enter_context(holding(results / FOLDER / f"{name}.lock"))
            stack.callback(file.unlink, missing_ok=True)
            atomic_bytes(file, msgspec.json.encode(run), durable=False)
        yield


@contextlib.contextmanager
def announced_job(results: Path, state: State) -> Iterator[None]:
    """Tell that a job runs for as long as the block lasts; how far it is comes from ``tell``."""
    file = results / FOLDER / f"{state.digest}.json"
    _write(file, state)
    os.environ[VARIABLE] = str(file.absolute())
    global _known, _last
    _known, _last = None, time.monotonic()
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


_known: tuple[str, State, float] | None = None
_last = 0.0


def tell(what: str, done: int, total: int, note: str, left: float) -> None:
    """Say how far this process's job is, unless that was said a moment ago. Also from processes that a job starts."""
    global _known, _last
    path, now = os.environ.get(VARIABLE), time.monotonic()
    if not path or (now - _last < INTERVAL and 1 < done < total):
        return
    _last = now
    if _known is None or _known[0] != path:
        try:
            state = msgspec.json.decode(Path(path).read_bytes(), type=State)
        except (OSError, ValueError):
            return
        _known = path, state, now - state.elapsed
    gpus = used_gpus() if "torch" in sys.modules else 0
    _write(
        Path(path),
        msgspec.structs.replace(
            _known[1],
            what=what,
            done=done,
            total=total,
            note=note,
            elapsed=round(now - _known[2], 1),
            left=round(left, 1),
            gpus=gpus,
        ),
    )


def _write(file: Path, state: State) -> None:
    with contextlib.suppress(OSError, UserError):
        atomic_bytes(file, canonical_json(state).encode(), durable=False)


def read_runs(results: Path) -> dict[str, Run]:
    """The Snakemakes that announced themselves, by the names of their files."""
    return {
        path.stem: run for path in _files(results, "run-*.json") if (run := _decode(path, Run)) is not None
    }


def read_states(results: Path) -> dict[str, tuple[State, float]]:
    """Digest -> what each job said last, and the time of that by the file system."""
    found = {}
    for path in _files(results, f"{'[0-9a-f]' * 16}.json"):
        state = _decode(path, State)
        if state is not None:
            with contextlib.suppress(OSError):
                found[state.digest] = state, path.stat().st_mtime
    return found


def _files(results: Path, pattern: str) -> list[Path]:
    return sorted((results / FOLDER).glob(pattern))


def _decode(path: Path, kind: Any) -> Any:
    try:
        return msgspec.convert(json.loads(path.read_bytes()), kind)
    except (OSError, ValueError):
        return None
