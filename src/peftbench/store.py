"""Results on disk: whole or not there, and written by one process at a time.

Files are written under a temporary name in their own folder, synced and renamed. A result folder is filled
by way of a ``.partial-*`` folder inside it; its ``record.json`` is written last, so a result exists if and
only if its record does.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from peftbench.canonical import DIGEST_LENGTH, canonical_json, digest_of_text, identity_text
from peftbench.errors import UserError
from peftbench.lease import locked as locked
from peftbench.lease import unless_locked as unless_locked

FINGERPRINT_EXEMPT = "moves bytes; does not compute them"
RECORD = "record.json"
FAILED = "failed"
"""Key of a record's facts: one line that says why its job ended without a result."""
PARTIAL = ".partial-"


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a finished job leaves: what it was asked, from which code and inputs, what came out, its cost."""

    stage: str
    digest: str
    label: str
    spec: dict[str, Any]
    code: dict[str, dict[str, str]]
    inputs: dict[str, str]
    facts: dict[str, Any]
    """What the stage reports: counts, losses, throughput, sha256 of its files."""
    provenance: dict[str, Any]


def atomic_write(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it (if ``durable``) and give it its name.

    Nothing of it stays after an error; a full disk is a ``UserError`` of one line.
    """
    with no_space_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        temporary = Path(name)
        try:
            os.close(handle)
            write(temporary)
            if durable:
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)


def atomic_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write bytes; see ``atomic_write``."""
    atomic_write(path, lambda temporary: temporary.write_bytes(data), durable)


def atomic_text(path: Path, text: str) -> None:
    """Write UTF-8 text with line ends as given; see ``atomic_write``."""
    atomic_bytes(path, text.encode())


def atomic_json(path: Path, value: Any) -> None:
    """Write plain data or structs as readable JSON with sorted keys; NaN is a ``ValueError``."""
    text = json.dumps(json.loads(canonical_json(value)), sort_keys=True, indent=1, ensure_ascii=False)
    atomic_text(path, text + "\n")


def atomic_parquet(path: Path, write: Callable[[Path], object]) -> None:
    """Write a parquet file by a callback such as ``frame.write_parquet``; see ``atomic_write``."""
    atomic_write(path, write)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system can, else a copy: finished results are never written again."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


_ABOUT_NAMES = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)


@contextlib.contextmanager
def no_space_in_one_line(path: Path) -> Iterator[None]:
    """Turn a full disk, a used-up quota and a read-only folder into a ``UserError`` that names the place."""
    try:
        yield
    except OSError as error:
        known = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        known |= {errno.EROFS: "the file system is read-only", errno.EACCES: "no permission to write"}
        known |= {errno.EPERM: "no permission to write", errno.EISDIR: "a folder stands in its place"}
        known |= dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file stands where there should be a folder")
        known |= {errno.ELOOP: "a link above it leads to itself", errno.ENAMETOOLONG: "the name is too long"}
        if error.errno in known:
            hint = (
                "make room and run again"
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else "check the folder"
            )
            # Of these the system names the place, which may be another one: a cache, a link's aim.
            elsewhere = error.filename if error.errno in _ABOUT_NAMES else None
            raise UserError(
                f"{elsewhere or path}: {known[error.errno]}: nothing was stored, {hint}"
            ) from None
        raise


def read_record(path: Path) -> Record:
    """The record at ``path``; ``UserError`` where it is missing, damaged or not what its digest says."""
    try:
        record = _decode_record(path.read_bytes())
        texts = [canonical_json(part) for part in (record.spec, record.code, record.inputs)]
    except OSError as error:
        raise UserError(f"{path}: no record ({error.strerror}): run snakemake to make it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a record ({error}): delete it and run again") from None
    made = digest_of_text(identity_text(record.stage, *texts))
    if made != record.digest:
        raise UserError(
            f"{path}: its content belongs to digest {made}, not {record.digest}: delete it and run again"
        )
    return record


def _decode_record(data: bytes) -> Record:
    import msgspec

    return msgspec.convert(json.loads(data), Record)  # json, not msgspec: the same floats as canonical_json


@contextlib.contextmanager
def partial_directory(target: Path, check: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A folder inside ``target`` to fill: its entries move up when the block ends well, else they go.

    Left-overs of killed predecessors are removed first, so hold the target's lock. ``check`` raises where it was lost;
    it is called last before anything moves.
    """
    with no_space_in_one_line(target):
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob(f"{PARTIAL}*"):
            shutil.rmtree(old, ignore_errors=True)
        work = Path(tempfile.mkdtemp(dir=target, prefix=PARTIAL))
        try:
            yield work
            for entry in sorted(work.rglob("*")):
                if entry.is_file():
                    with entry.open("rb") as stream:
                        os.fsync(stream.fileno())
            check()
            for entry in sorted(work.iterdir()):
                final = target / entry.name
                if final.is_dir() and not final.is_symlink():
                    shutil.rmtree(final)
                entry.replace(final)
            sync_directory(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):
                target.rmdir()  # only where nothing came of it


def directory_digest(directory: Path) -> str:
    """The digest that a result folder's name ends in; ``UserError`` where it has none."""
    found = directory.name.rpartition("-")[2]
    if len(found) != DIGEST_LENGTH or set(found) - set("0123456789abcdef"):
        raise UserError(f"{directory}: the folder's name does not end in a digest")
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
