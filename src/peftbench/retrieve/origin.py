"""Where files come from: the ``from:`` block of a model's or data set's source.

    from:
      data: {hub: derek-thomas/ScienceQA, revision: main, files: ["data/*.parquet"]}
      images: {url: "http://images.cocodataset.org/zips/train2014.zip"}
      own: {path: my_pictures}

Each origin is one retrieval, shared by all that name it with the same words. A local path is known by the digest
of its content: moving the folder changes nothing, editing a file does.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from peftbench.addresses import refuse_secrets
from peftbench.errors import UserError
from peftbench.spec import RetrieveSpec
from peftbench.store import atomic_bytes

FINGERPRINT_EXEMPT = "names what to fetch; what was fetched is verified against that name"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTLED_SECONDS = 2.0
"""A file changed more recently than this may change again within the resolution of its times: not remembered."""


class Origin(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of ``from:``; exactly one of ``hub``, ``url`` and ``path``."""

    hub: str = ""
    """``owner/name`` on the Hugging Face hub."""
    revision: str = "main"
    """Commit (40 hexadecimal digits; best, see ``peftbench pin``), branch or tag."""
    files: list[str] = []
    """Glob patterns inside the repository; none: all files."""
    url: str = ""
    """Address of a single file."""
    sha256: str = ""
    """Of that file, where known."""
    path: str = ""
    """Local file or folder; a relative path starts at the working directory."""
    content: str = ""
    """Of a local path: filled in by ``parse_origins``."""

    @property
    def slug(self) -> str:
        """A short name for folders."""
        name = self.hub.replace("/", "--") or (self.url or self.path).rstrip("/").rpartition("/")[2]
        return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "files"

    @property
    def pinned(self) -> bool:
        """Whether the name can only ever mean one content."""
        return bool(_COMMIT.fullmatch(self.revision)) if self.hub else bool(self.sha256 or self.path)

    def spec(self, repo_type: Literal["model", "dataset"]) -> RetrieveSpec:
        """What its retrieval is asked for; without the local path, which is no part of the identity."""
        if self.hub:
            return RetrieveSpec(
                hub=self.hub, repo_type=repo_type, revision=self.revision, files=sorted(self.files)
            )
        return RetrieveSpec(url=self.url, sha256=self.sha256, content=self.content)


def parse_origins(block: Any) -> dict[str, Origin]:
    """The typed ``from:`` block, local content digested; ``UserError`` for whatever is wrong in it."""
    if not isinstance(block, dict) or not block:
        raise UserError("source.from: expected names, each with hub, url or path")
    origins = {}
    for name, entry in block.items():
        where = f"source.from.{name}"
        try:
            origin = msgspec.convert(entry, Origin)
        except msgspec.ValidationError as error:
            raise UserError(f"{where}: {error}") from None
        if sum(map(bool, (origin.hub, origin.url, origin.path))) != 1:
            raise UserError(f"{where}: give exactly one of hub, url and path")
        if origin.hub and not _REPOSITORY.fullmatch(origin.hub):
            raise UserError(f"{where}: hub: {origin.hub!r} is not of the form owner/name")
        if origin.url and not origin.url.startswith(("http://", "https://")):
            raise UserError(f"{where}: url: {origin.url!r} does not start with http:// or https://")
        if origin.url:
            refuse_secrets(origin.url, f"{where}: url")
        if origin.sha256 and not _SHA256.fullmatch(origin.sha256):
            raise UserError(f"{where}: sha256: {origin.sha256!r} is none: it has 64 digits of 0-9 and a-f")
        if origin.path and not origin.content:
            try:
                digest = content_digest(Path(origin.path))
            except OSError as error:
                raise UserError(f"{where}: path: {error.filename}: {error.strerror}") from None
            origin = msgspec.structs.replace(origin, content=digest)
        origins[str(name)] = origin
    return origins


def content_digest(path: Path) -> str:
    """Digest (hex) of a file's bytes, or of the names and bytes of all files below a folder.

    Names are relative, so the place does not count; neither do times, modes and hidden files. What was hashed
    once is remembered by size and time of change, as git does. Raises ``OSError`` where it cannot be read.
    """
    if path.is_file():
        return _Hashes().of({"": path})
    files = {name: path / name for name in local_files(path)}
    return _Hashes().of(files)


def local_files(folder: Path) -> list[str]:
    """Relative names of all files below a folder, in order, hidden ones left out.

    Links are followed. ``OSError`` where something is unreadable, no file (a pipe would never end), or a folder that
    lies in itself.
    """
    found: list[str] = []

    def fail(error: OSError) -> None:
        raise error

    for here, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(here, name) for name in folders):
            if path.is_symlink() and Path(here).resolve().is_relative_to(path.resolve()):
                raise OSError(errno.ELOOP, "a folder that lies in itself", str(path))
        for path in (Path(here, name) for name in names if not name.startswith(".")):
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(errno.EINVAL, "neither a file nor a folder", str(path))
            found.append(str(path.relative_to(folder)))
    return sorted(found)


class _Hashes:
    """sha256 of files, remembered between plans in the user's cache folder."""

    def __init__(self) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self.file = Path(cache) / "peftbench" / "hashes.json"
        self.known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):  # nothing is remembered: everything is read
            self.known = json.loads(self.file.read_bytes())

    def of(self, files: dict[str, Path]) -> str:
        fresh = False
        lines = []
        for name, path in sorted(files.items()):
            facts = path.stat()
            key = str(path.resolve())
            mark = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
            entry = self.known.get(key)
            if entry is None or entry[:3] != mark:
                with path.open("rb") as stream:
                    entry = [*mark, hashlib.file_digest(stream, "sha256").hexdigest()]
                if time.time() - facts.st_mtime > _SETTLED_SECONDS:
                    self.known[key] = entry
                    fresh = True
            lines.append(f"{entry[3]} {name}\n")
        if fresh:
            with contextlib.suppress(OSError, UserError):  # a read-only home costs time, nothing else
                atomic_bytes(self.file, json.dumps(self.known).encode(), durable=False)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
