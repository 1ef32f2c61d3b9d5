"""One retrieval: whatever its origin, the files lie in a folder and their sizes and hashes are known."""

import shutil
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.spec import RetrieveSpec
from peftbench.store import RECORD, no_space_in_one_line

FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"


def retrieve(
    spec: RetrieveSpec, out_dir: Path, staging: Path, local_path: str, mirrors: dict[str, str]
) -> dict[str, Any]:
    """Fill ``out_dir`` with what ``spec`` names; return the facts for its record.

    ``staging`` keeps partial downloads for the next try after a kill and is removed in the end. ``local_path`` is
    where a local origin lies. ``mirrors`` maps beginnings of addresses to other ones.

    Facts: ``files`` (relative path -> size, sha256), ``bytes`` in all, ``resolved`` (commit of a repository, address
    of a file, digest of local files), ``fetched`` (bytes that came over the network).
    Raises ``UserError``, one line that says what to do, for whatever goes wrong.
    """
    with no_space_in_one_line(staging):
        if spec.hub:
            from peftbench.retrieve import hub

            facts = hub.retrieve(spec, out_dir, staging)
        elif spec.url:
            from peftbench.retrieve import url

            facts = url.retrieve(spec.url, spec.sha256, out_dir, staging, mirrors)
        else:
            from peftbench.retrieve import local

            facts = local.retrieve(Path(local_path), spec.content, out_dir)
        if RECORD in facts["files"]:
            raise UserError(
                f"{spec.hub or spec.url or local_path}: holds a file {RECORD}, a name that results use themselves:"
                " rename it, or leave it out by 'files:' patterns"
            )
        shutil.rmtree(staging, ignore_errors=True)
    return facts
