"""Finding and opening the files of an origin, and members of zip archives without extracting them."""

from __future__ import annotations

import contextlib
import gzip
import re
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from peftbench.errors import UserError, did_you_mean
from peftbench.store import RECORD


def folder_of(files: dict[str, Path], origin: str) -> Path:
    """Folder with what was retrieved for an origin."""
    if origin not in files:
        raise UserError(f"source.from: nothing was retrieved for {origin!r}{did_you_mean(origin, files)}")
    return files[origin]


def names_in(folder: Path) -> list[str]:
    """Relative names of an origin's files in natural order, without the record of their retrieval."""
    if folder.is_file():
        return [""]  # an origin that is one local file
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    wanted = (name for name in names if name != RECORD and not name.startswith("."))
    return sorted(wanted, key=natural)


def matching(folder: Path, pattern: str, what: str) -> list[Path]:
    """Files whose name matches a glob (``*`` also matches ``/``); without one, the only file.

    Raises ``UserError`` where none matches, or where there are several and no glob.
    """
    names = names_in(folder)
    found = [name for name in names if fnmatchcase(name, pattern)] if pattern else names
    if not found:
        near = did_you_mean(pattern, names)
        near = near if "did you mean" in near else _shown(names)
        raise UserError(f"{folder}: no file matches {pattern!r} ({what}){near}")
    if not pattern and len(found) > 1:
        raise UserError(f"{folder}: has {len(found)} files: name one ({what}){_shown(names)}")
    return [folder / name for name in found]


def _shown(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f": there is {shown}" if names else ": there is nothing"


def natural(name: str) -> list[Any]:
    """Key that sorts ``9`` before ``10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def members(archive: zipfile.ZipFile) -> list[str]:
    """Names of an archive's files in natural order, without folders and the litter of macOS."""
    names = (name for name in archive.namelist() if not name.endswith("/"))
    return sorted((n for n in names if not n.startswith("__MACOSX/")), key=natural)


@contextlib.contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive; ``UserError`` where it is none."""
    archive = open_zip(path)
    try:
        yield archive
    finally:
        archive.close()


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip archive; ``UserError`` where it is none."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable zip archive ({error}): retrieve it again") from None


Opened = tuple[str, str, IO[bytes]]
"""Where it is for people; its name; its bytes."""


def open_all(folder: Path, pattern: str, member: str, what: str) -> Iterator[Opened]:
    """Each file that is meant, open for reading: files, or members of archives.

    ``.gz`` is unpacked on the way. The stream is valid until the next one is asked for.
    """
    for path in matching(folder, pattern, what):
        name = path.name if folder == path else str(path.relative_to(folder))
        if path.suffix.lower() == ".zip":
            yield from _open_members(path, member, what)
        elif member:
            raise UserError(f"{path}: no zip archive, so it has no member {member!r} ({what})")
        elif path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                yield str(path), name.removesuffix(".gz"), stream  # type: ignore[misc]
        else:
            with path.open("rb") as file:
                yield str(path), name, file


def _open_members(path: Path, member: str, what: str) -> Iterator[Opened]:
    with opened_zip(path) as archive:
        names = members(archive)
        found = [name for name in names if fnmatchcase(name, member)] if member else names
        if not found or (not member and len(found) > 1):
            problem = f"no member matches {member!r}" if member else f"has {len(found)} members: name one"
            raise UserError(f"{path}: {problem} ({what}){_shown(names)}")
        for name in found:
            with archive.open(name) as stream:
                yield f"{path}: {name}", name, stream
