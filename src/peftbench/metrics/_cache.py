"""Where compiled references and Java's tokens are kept, and how a file is recognised unread.

The folder is ``$PEFTBENCH_CACHE``, else ``$XDG_CACHE_HOME/peftbench``, else ``~/.cache/peftbench``;
``PEFTBENCH_CACHE=off`` turns it off. Nothing in it is ever needed: a cache that cannot be read or written is
a slower run, not an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from peftbench.errors import UserError
from peftbench.store import atomic_write

HASH_BLOCK = 1 << 17
KEPT_SETS = 16
"""Compiled references kept of each kind."""
RACY_SECONDS = 2.0
"""A file changed this recently may change again within one tick of the clock: its time proves nothing."""


def cache_dir() -> Path | None:
    """The cache folder, or None where caching is off."""
    setting = os.environ.get("PEFTBENCH_CACHE", "")
    if setting == "off":
        return None
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "peftbench"
    except RuntimeError:  # no home directory
        return None


def write_cached(path: Path, write: Callable[[Path], object]) -> bool:
    """Let ``write`` fill a temporary file, then give it its name; False where the folder cannot be used."""
    try:
        atomic_write(path, write)
    except (OSError, UserError):
        return False
    return True


def prune(folder: Path, keep: int = KEPT_SETS - 1) -> None:
    """Remove the oldest compiled references of a folder beyond ``keep``: a set of captions may take 100 MB."""
    with contextlib.suppress(OSError):
        entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in entries[keep:]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file, remembered by its identity on disk (path, inode, size, times of change).

    The time of the inode's change cannot be set by a program, so a changed file is always read again.
    """
    status = path.stat()
    index = _index_file(path)
    key = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if index is not None:
        with contextlib.suppress(OSError, msgspec.DecodeError, ValueError, TypeError, KeyError):
            known = msgspec.json.decode(index.read_bytes())
            if known["key"] == key:
                return str(known["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(HASH_BLOCK):
            digest.update(block)
    if index is not None and time.time() - status.st_ctime > RACY_SECONDS:
        row = msgspec.json.encode({"key": key, "sha256": digest.hexdigest(), "path": str(path.resolve())})
        write_cached(index, lambda temporary: temporary.write_bytes(row))
    return digest.hexdigest()


def _index_file(path: Path) -> Path | None:
    folder = cache_dir()
    if folder is None:
        return None
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / "files" / f"{name}.json"
