"""Repositories of the Hugging Face hub: pinned, resumed after a kill, every file verified.

``huggingface_hub`` tells what a repository holds, where files are and who we are (HF_ENDPOINT, HF_TOKEN, HF_HOME).
The bytes come by our own transfer, because its downloads begin anew after a kill. What the user's own cache holds is
taken from there; what is fetched is put there too where a hard link can, so that it costs no space.
"""

import difflib
import os
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    filter_repo_objects,
    get_session,
)

from peftbench.errors import UserError
from peftbench.retrieve.hub_cache import COMMIT, Cache, Entry
from peftbench.retrieve.transfer import (
    FAULTS,
    Refused,
    Transfer,
    digests_of,
    explain,
    in_words,
    time_limits,
)
from peftbench.spec import RetrieveSpec

FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"
THREADS = 4
_T = TypeVar("_T")


def retrieve(spec: RetrieveSpec, out_dir: Path, staging: Path) -> dict[str, Any]:
    """Fill ``out_dir`` with the wanted files of a repository; return the facts.

    Verified files wait in ``staging`` under the names of their contents until all are there. ``UserError`` where
    one cannot be had; what has come stays in ``staging`` for the next time.
    """
    hub = _Hub(spec.hub, spec.repo_type)
    commit, entries = hub.listing(spec.revision)
    wanted = _select(entries, spec.files, hub.name)
    todo = {entry.key: entry for entry in wanted}
    ready: dict[str, tuple[Path, str]] = {}
    """By key: where the verified bytes lie, and their sha256."""
    for key, entry in list(todo.items()):
        found = hub.from_cache(entry, commit)
        if found is not None:
            ready[key] = found
            del todo[key]
    _check_room(hub.name, todo.values(), ready.values(), staging, out_dir)
    hub.transfer.total = sum(entry.size for entry in todo.values())
    _in_threads(hub.transfer, lambda entry: hub.fetch(entry, commit, staging / entry.etag), todo, ready)
    for entry in wanted:
        target = out_dir / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _place(ready[entry.key][0], target)
        hub.cache.keep(entry, commit, target)
    hub.cache.remember(spec.revision, commit)
    return {
        "files": {e.path: {"size": e.size, "sha256": ready[e.key][1]} for e in wanted},
        "bytes": sum(entry.size for entry in wanted),
        "resolved": commit,
        "fetched": hub.transfer.fetched,
    }


def resolve_revision(repo: str, repo_type: Literal["model", "dataset"], revision: str) -> str:
    """Commit that a branch or tag of a repository stands for now; ``UserError`` where the hub does not tell."""
    if huggingface_hub.is_offline_mode():
        raise UserError(f"{repo_type} {repo}: HF_HUB_OFFLINE is set: unset it, to ask the hub for {revision}")
    return _Hub(repo, repo_type).resolve(revision)


class _Hub:
    """One repository on the hub, by way of the cache."""

    def __init__(self, repo: str, repo_type: Literal["model", "dataset"]) -> None:
        self.repo = repo
        self.repo_type = repo_type
        self.name = f"{repo_type} {repo}"
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT
        self.page = f"{self.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
        self.cache = Cache(repo, repo_type)
        self.transfer = Transfer(get_session)
        self.headers = build_hf_headers(library_name="peftbench")
        self.api = HfApi(endpoint=self.endpoint, library_name="peftbench")

    def resolve(self, revision: str) -> str:
        """Commit of a revision; ``UserError`` where a commit is not what it was."""

        def ask() -> str:
            info = self.api.repo_info(
                self.repo, repo_type=self.repo_type, revision=revision, timeout=time_limits().read
            )
            return str(info.sha)

        commit = self._patiently(ask, revision)
        if COMMIT.fullmatch(revision) and commit != revision:
            raise UserError(
                f"{self.name}: revision moved: {revision} was asked for, the hub gives {commit}: check the repository"
                f" at {self.page}, and pin it again"
            )
        return commit

    def listing(self, revision: str) -> tuple[str, list[Entry]]:
        """The commit and its files: from the hub, or without a network what the cache knows of it."""
        if huggingface_hub.is_offline_mode():
            return self._list_offline(revision, "HF_HUB_OFFLINE is set")
        try:
            commit = self.resolve(revision)
        except UserError as error:
            if _no_connection(error) and self.cache.commit(revision) == revision:
                with suppress(UserError):
                    found = self._list_offline(revision, "")
                    print(f"warning: {error}; the cache has this commit", file=sys.stderr)
                    return found
            raise
        return commit, self._patiently(lambda: self._tree(commit), commit)

    def _tree(self, commit: str) -> list[Entry]:
        """All files of a commit. Page by page ourselves: the library's own listing waits without a limit."""
        address = f"{self.endpoint}/api/{self.repo_type}s/{self.repo}/tree/{commit}"
        query: httpx2.QueryParams | None = httpx2.QueryParams(recursive="true")
        found: list[Entry] = []
        while query is not None:
            response = get_session().get(address, params=query, headers=self.headers, timeout=time_limits())
            if response.status_code >= 400:
                raise Refused(response)
            for row in response.json():
                if row["type"] == "file":
                    file = RepoFile(**row)
                    found.append(
                        Entry(file.path, file.size, file.blob_id, file.lfs.sha256 if file.lfs else "")
                    )
            following = response.links.get("next", {}).get("url")
            query = httpx2.URL(following).params if following else None
        return found

    def _list_offline(self, revision: str, why: str) -> tuple[str, list[Entry]]:
        commit = self.cache.commit(revision)
        entries, complete = self.cache.entries(self.repo, self.repo_type, commit) if commit else ([], False)
        if not entries:
            raise UserError(
                f"{self.name}: {why}, and {self.cache.folder} does not hold revision {revision}: unset it, or fetch on"
                " a login node first: snakemake prefetch"
            )
        if not complete:
            print(
                f"warning: {self.name}: offline, so nobody tells which files the repository has: taking the"
                f" {len(entries)} in the cache",
                file=sys.stderr,
            )
        return commit, entries

    def from_cache(self, entry: Entry, commit: str) -> tuple[Path, str] | None:
        """A verified file of the cache and its sha256. A wrong one is deleted there, if it can be."""
        path = self.cache.find(entry, commit)
        if path is None:
            return None
        with suppress(PermissionError):
            digests = digests_of(path, None if entry.sha256 else entry.size)
            if entry.fits(digests):
                return path.resolve(), digests.sha256
            print(f"warning: {path}: damaged: deleted, to be fetched again", file=sys.stderr)
            with suppress(OSError):
                path.resolve().unlink()
            path.unlink(missing_ok=True)
        return None

    def fetch(self, entry: Entry, commit: str, part: Path) -> tuple[Path, str]:
        """Download and verify one file; its place and sha256."""
        what = f"{self.name}: {entry.path}"
        if huggingface_hub.is_offline_mode():
            raise UserError(
                f"{what}: HF_HUB_OFFLINE is set, and {self.cache.folder} does not hold it: unset it, or fetch on a"
                " login node first: snakemake prefetch"
            )
        url = hf_hub_url(
            self.repo, entry.path, repo_type=self.repo_type, revision=commit, endpoint=self.endpoint
        )
        found = ""
        for _ in range(2):
            try:
                digests = self.transfer.download(
                    what, url, part, self.headers, entry.size, git=not entry.sha256
                )
            except FAULTS as error:
                raise self._explained(error, commit, entry.path) from None
            if entry.fits(digests):
                return part, digests.sha256
            found = digests.sha256 if entry.sha256 else digests.blob
            part.unlink(missing_ok=True)
            print(f"{what}: wrong bytes came (hash {found}, not {entry.etag})", file=sys.stderr)
        raise UserError(
            f"{what}: wrong bytes came, twice (hash {found} instead of {entry.etag}): something between here and"
            f" {self.endpoint} alters them; try again later, or without a proxy or mirror"
        )

    def _patiently(self, call: Callable[[], _T], revision: str) -> _T:
        def ask() -> _T:
            try:
                return call()
            except HfHubHTTPError as error:
                raise Refused(error.response) from None

        try:
            return self.transfer.persist(self.name, ask)
        except FAULTS as error:
            raise self._explained(error, revision) from None
        except HFValidationError as error:
            raise UserError(f"{self.name}: {error}".splitlines()[0]) from None
        except (ValueError, KeyError, TypeError):  # JSON, but another's; or a page that wants a log-in
            raise UserError(
                f"{self.name}: {self.endpoint} does not answer as a hub does: check HF_ENDPOINT and the proxy"
            ) from None

    def _explained(self, error: Exception, revision: str, path: str = "") -> UserError:
        """One line for what the hub refuses; the commonest ways are ours to mend."""
        what = f"{self.name}: {path}" if path else self.name
        if not isinstance(error, Refused):
            return explain(error, what, self.endpoint)
        if error.code == "GatedRepo":
            if error.authorised:
                return UserError(
                    f"{what}: gated, and the account of your HF_TOKEN has no access: accept the licence at"
                    f" {self.page}"
                )
            return UserError(
                f"{what}: gated: accept the licence at {self.page} and set HF_TOKEN to a token of that account"
            )
        if error.code == "RevisionNotFound":
            return UserError(f"{what}: no revision {revision}: see {self.page}/commits/main and correct it")
        if error.code == "EntryNotFound" and path:
            return UserError(
                f"{what}: not found at revision {revision}, though it is listed: try again, or see {self.page}"
            )
        if error.code == "RepoNotFound" or error.status in (401, 404):
            if error.authorised:
                hint = "check its name; if it is private, HF_TOKEN must be of an account that may read it"
                hint += "" if error.status == 404 else ", and valid"
            else:
                hint = "check its name; if it is private, set HF_TOKEN"
            return UserError(f"{what}: no such {self.repo_type} at {self.endpoint}: {hint}")
        if error.status == 403:
            said = f" ({error.message})" if error.message else ""
            return UserError(
                f"{what}: access forbidden{said}: accept the licence at {self.page}, if it has one, and set HF_TOKEN to"
                " a token that may read it"
            )
        return explain(error, what, self.endpoint)


def _no_connection(error: UserError) -> bool:
    return "no connection to" in str(error)


def _select(entries: list[Entry], patterns: list[str], name: str) -> list[Entry]:
    """The entries that the glob patterns want; ``UserError`` where one wants none, or a name is not safe.

    Only a mere suffix (``*.jinja``) may want nothing: it names a kind of file, and not each repository has all kinds.
    """
    paths = [entry.path for entry in entries]
    chosen = set(filter_repo_objects(paths, allow_patterns=patterns or None))
    for pattern in patterns:
        kind = re.fullmatch(r"\*\.\w+", pattern)
        if not (kind and chosen) and not list(filter_repo_objects(paths, allow_patterns=pattern)):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or sorted(paths)[:3]
            raise UserError(
                f"{name}: no file matches {pattern!r}; the nearest of its {len(paths)} files:"
                f" {', '.join(near) or 'none'}: correct 'files:'"
            )
    for path in chosen:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or not path:
            raise UserError(
                f"{name}: holds a file of the name {path!r}, which would lie outside: do not use it"
            )
    if not chosen:
        raise UserError(f"{name}: the repository is empty: check its name and revision")
    return sorted((entry for entry in entries if entry.path in chosen), key=lambda entry: entry.path)


def _check_room(name: str, todo: Any, ready: Any, staging: Path, out_dir: Path) -> None:
    """``UserError`` where what is to come will not fit; what has come already, or becomes a link, needs no room."""
    need = 0
    for entry in todo:
        part = staging / entry.etag
        need += entry.size - (part.stat().st_size if part.exists() else 0)
    device = out_dir.stat().st_dev
    need += sum(path.stat().st_size for path, _ in ready if path.stat().st_dev != device)
    free = shutil.disk_usage(out_dir).free
    if need > free:
        raise UserError(
            f"{name}: needs {in_words(need)}, {out_dir.parent} has {in_words(free)} free: make room and run again"
        )


def _in_threads(
    transfer: Transfer,
    fetch: Callable[[Entry], tuple[Path, str]],
    todo: dict[str, Entry],
    ready: dict[str, tuple[Path, str]],
) -> None:
    """Fetch several files at a time, into ``ready``; the first error ends all."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = {pool.submit(fetch, entry): key for key, entry in todo.items()}
        try:
            for future in as_completed(futures):
                ready[futures[future]] = future.result()
        except BaseException:
            transfer.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _place(file: Path, target: Path) -> None:
    """Give verified bytes their name, by a hard link where the file system can."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
