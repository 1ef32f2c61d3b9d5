"""Local files of the user's own, copied as they were when the job was planned."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.retrieve.origin import local_files
from peftbench.retrieve.transfer import digests_of

FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"
LINK_FROM_BYTES = 64_000_000


def retrieve(source: Path, content: str, out_dir: Path) -> dict[str, Any]:
    """Copy a file or a folder into ``out_dir``, hidden files left out; large files become hard links, where possible.

    ``content`` is the digest that it must have (``origin.content_digest``). Returns the facts for the record.
    ``UserError`` where it cannot be read or is no longer what it was.
    """
    try:
        names = [source.name] if source.is_file() else local_files(source)
        for name in names:
            target = out_dir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_or_link(source if source.is_file() else source / name, target)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not found: run snakemake again, or correct the path") from None
    except PermissionError as error:
        if error.filename is None or Path(error.filename).is_relative_to(out_dir):
            raise
        raise UserError(f"{error.filename}: no permission to read it") from None
    files = {name: digests_of(out_dir / name) for name in sorted(names)}
    # Of a single file the digest leaves out the name; as in ``content_digest``, which a test holds this equal to.
    lines = [f"{d.sha256} {'' if source.is_file() else name}\n" for name, d in files.items()]
    if hashlib.sha256("".join(lines).encode()).hexdigest() != content:
        raise UserError(f"{source}: changed while being read or since it was planned: run snakemake again")
    return {
        "files": {name: {"size": d.size, "sha256": d.sha256} for name, d in files.items()},
        "bytes": sum(d.size for d in files.values()),
        "resolved": content,
        "fetched": 0,
    }


def copy_or_link(source: Path, target: Path) -> None:
    """Give ``target`` the bytes of a file: by a hard link where it is large and that is possible."""
    if source.stat().st_size >= LINK_FROM_BYTES:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)
