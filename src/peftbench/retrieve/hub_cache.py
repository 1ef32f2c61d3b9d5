"""The user's own cache of the hub (HF_HOME): what it holds is not fetched again."""

import os
import re
from contextlib import suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from msgspec import Struct

from peftbench.retrieve.transfer import Digests

FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"
COMMIT = re.compile(r"[0-9a-f]{40}")


class Entry(Struct, frozen=True):
    """One file of a repository, as the hub lists it."""

    path: str
    size: int
    blob: str
    """Git's blob id: of the file, or of its pointer where it is an LFS file."""
    sha256: str = ""
    """Of an LFS file."""

    @property
    def etag(self) -> str:
        """Its name in the hub's cache, which is that of its content; empty where nothing tells it."""
        return self.sha256 or self.blob

    @property
    def key(self) -> str:
        """The same for files of the same content, where it is known."""
        return self.etag or self.path

    def fits(self, digests: Digests) -> bool:
        """Whether bytes are those of this file."""
        if digests.size != self.size:
            return False
        if self.sha256 or not self.blob:  # nothing known: a cache without links, offline
            return self.sha256 in ("", digests.sha256)
        return self.blob in (digests.blob, git_pointer(digests.sha256, digests.size))


class Cache:
    """One repository in the user's cache (HF_HOME), in the layout that huggingface_hub documents."""

    def __init__(self, repo: str, repo_type: str) -> None:
        folder = "--".join([f"{repo_type}s", *repo.split("/")])
        self.folder = Path(constants.HF_HUB_CACHE).expanduser() / folder

    def find(self, entry: Entry, commit: str) -> Path | None:
        """A file with the right name and size; only its hash tells whether it is right."""
        places = [self.folder / "snapshots" / commit / entry.path]
        if entry.etag:
            places.insert(0, self.folder / "blobs" / entry.etag)
        for path in places:
            with suppress(OSError):
                if path.is_file() and path.stat().st_size == entry.size:
                    return path
        return None

    def keep(self, entry: Entry, commit: str, file: Path) -> None:
        """Add a verified file by a hard link, where that is possible; else the cache stays as it is."""
        if not entry.etag:
            return
        blob = self.folder / "blobs" / entry.etag
        pointer = self.folder / "snapshots" / commit / entry.path
        with suppress(OSError):
            blob.parent.mkdir(parents=True, exist_ok=True)
            if not blob.exists():
                os.link(file, blob)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if not pointer.exists():
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit a branch or tag stands for."""
        if revision == commit or not self.folder.is_dir():
            return
        reference = self.folder / "refs" / revision
        with suppress(OSError):
            reference.parent.mkdir(parents=True, exist_ok=True)
            temporary = reference.with_name(f"{reference.name}.{os.getpid()}.tmp")
            temporary.write_text(commit)
            temporary.replace(reference)

    def commit(self, revision: str) -> str:
        """Commit that a revision stood for when it was last fetched; empty where that is not known."""
        if COMMIT.fullmatch(revision):
            return revision
        with suppress(OSError):
            return (self.folder / "refs" / revision).read_text().strip()
        return ""

    def entries(self, repo: str, repo_type: str, commit: str) -> tuple[list[Entry], bool]:
        """What it knows of a commit's files, and whether these are all of them."""
        snapshot = self.folder / "snapshots" / commit
        try:
            tree = huggingface_hub.get_cached_repo_tree(
                repo, repo_type=repo_type, revision=commit, cache_dir=self.folder.parent
            )
        except CachedRepoTreeNotFoundError:
            found = [p for p in sorted(snapshot.rglob("*")) if p.is_file()]
            return [_cached_entry(path.relative_to(snapshot).as_posix(), path) for path in found], False
        # A cached tree has no sha256: the name of the blob in the cache is one, for an LFS file.
        entries = []
        for file in tree:
            cached = _cached_entry(file.path, snapshot / file.path)
            lfs = cached.sha256 if git_pointer(cached.sha256, file.size) == file.blob_id else ""
            entries.append(Entry(file.path, file.size, file.blob_id, lfs))
        return entries, True


def _cached_entry(path: str, pointer: Path) -> Entry:
    """A file of the cache as its names tell; without links in the cache they tell nothing."""
    name = pointer.readlink().name if pointer.is_symlink() else ""
    size = pointer.stat().st_size if pointer.is_file() else -1
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Entry(path, size, "", name)
    return Entry(path, size, name if COMMIT.fullmatch(name) else "")


def git_pointer(sha256: str, size: int) -> str:
    """Git's blob id of the pointer that stands for an LFS file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    digests = Digests(len(text))
    digests.update(text)
    return digests.blob
