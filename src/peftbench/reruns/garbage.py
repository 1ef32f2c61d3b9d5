"""Which parts of a results folder nothing needs, and how they go: see ``gc``."""

import contextlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from peftbench.errors import UserError
from peftbench.failures import NOTES
from peftbench.graph import INDEX, VIEW_FILES, Plan
from peftbench.lease import held_by_other
from peftbench.reruns.records import Store, digest_in, result_folders
from peftbench.running import FOLDER as RUNNING
from peftbench.store import PARTIAL, RECORD, unless_locked

TRASH = ".trash"
DIGEST_NAME = re.compile(r"[0-9a-f]{16}")
DAY = 86400.0
FOREIGN_LOCK_DAYS = 7
"""A lock of another machine, which cannot be asked, counts as held for so long after it was taken."""


class Item(Struct, frozen=True, kw_only=True):
    """One thing that may go."""

    kind: str
    """Stage of a result, or what else it is."""
    path: Path
    bytes: int
    digest: str = ""
    label: str = ""


class Found(Struct, frozen=True, kw_only=True):
    """What a look at a results folder found."""

    items: list[Item]
    notes: list[str]
    """Why something was kept that would go otherwise, and what is broken; one line each."""
    kept: int
    """Results that stay."""


class Collector:
    """Looks through one results folder."""

    def __init__(
        self, results: Path, plans: list[Plan], needed: set[str], root: Path, keep_days: float
    ) -> None:
        self.results = results
        self.plans = plans
        self.planned = needed
        self.root = root
        self.keep_days = keep_days
        self.now = time.time()
        self.store = Store(results)
        self.notes: list[str] = []
        self.needed: set[str] = set()
        self._closures: dict[frozenset[str], set[str]] = {}

    def find(self) -> Found:
        """Everything that may go."""
        folders = list(result_folders(self.results))
        _ = self.store.all  # names the broken ones
        self.needed = self._closure({*self.planned, *self._young(folders)}) | self._needed_by_work()
        items = [*self._results(folders), *self._images(folders), *self._caches(), *self._views()]
        items += [
            *self._staging(),
            *self._partials(folders),
            *self._tickets(),
            *self._announcements(),
            *self._trash(),
        ]
        return Found(
            items=items,
            notes=self.notes + self.store.broken,
            kept=sum(digest in self.needed for digest in self.store.places),
        )

    def remove(self, items: list[Item]) -> tuple[int, int, list[str]]:
        """Remove what was found; how many, how many bytes, and what could not be."""
        trash = self.results / TRASH
        removed, freed = 0, 0
        problems: list[str] = []
        for item in items:
            if item.digest and item.digest in self._needed_by_work():
                problems.append(f"{item.path}: needed by a job that began meanwhile: kept")
                continue
            if item.kind == "image" and "prepare" in self._stages_in_work():
                problems.append(f"{item.path}: a data set is being prepared: image kept")
                continue
            try:
                with _alone(self.results, item.digest) as free:
                    if not free:
                        problems.append(f"{item.path}: a job began to make it: kept")
                        continue
                    self._to_trash(item.path, trash)
                removed += 1
                freed += item.bytes
            except FileNotFoundError:
                continue  # another gc was quicker
            except OSError as error:
                problems.append(f"{item.path}: {error.strerror}: kept")
        self._tidy()
        return removed, freed, problems

    def _to_trash(self, path: Path, trash: Path) -> None:
        if path.parent == trash:
            _delete(path)
            return
        trash.mkdir(exist_ok=True)
        gone = trash / f"{path.name}.{uuid.uuid4().hex[:8]}"
        path.rename(gone)
        _delete(gone)

    def _tidy(self) -> None:
        """Empty folders above what went."""
        for top in ("retrieved", "data", "subsets", "models", "exposed", "runs", "images", TRASH):
            for folder in sorted((self.results / top).rglob("*"), reverse=True):
                if folder.is_dir() and not folder.is_symlink():
                    with suppress(OSError):
                        folder.rmdir()
            with suppress(OSError):
                (self.results / TRASH).rmdir()

    # what must stay

    def _closure(self, digests: Iterable[str]) -> set[str]:
        """These and all that they were, or are to be, made from."""
        found: set[str] = set()
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            if digest not in found:
                found.add(digest)
                waiting.extend(self._inputs(digest))
        return found

    def _inputs(self, digest: str) -> list[str]:
        for plan in self.plans:
            if digest in plan.jobs:
                return [job.digest for job in plan.jobs[digest].inputs.values()]
        if digest in self.store.all:
            return list(self.store.all[digest].inputs.values())
        return list(self._ticket(digest).get("inputs", {}).values())

    def _ticket(self, digest: str) -> dict[str, Any]:
        try:
            content = json.loads((self.results / ".tickets" / f"{digest}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _young(self, folders: list[tuple[str, Path]]) -> set[str]:
        if not self.keep_days:
            return set()
        limit = self.now - self.keep_days * DAY
        return {digest for digest, folder in folders if _mtime(folder / RECORD) > limit}

    def _in_work(self) -> set[str]:
        """Digests that jobs are making now; with Snakemake running, all that it may still start."""
        held = self._held_digests()
        locks = [
            path
            for path in _files(self.results / ".locks")
            if not DIGEST_NAME.fullmatch(path.name) and not path.name.startswith(".")
        ]
        snakemake = self.root / ".snakemake/locks"
        note = ""
        if any(self._held(path) for path in locks):
            note = (
                f"{self.results / '.locks'}: a table, figure or page is being made: what has a ticket is kept"
            )
        if any(_files(snakemake)):
            note = f"{snakemake}: Snakemake runs here, or was killed ('snakemake --unlock'): what has a ticket is kept"
        if note:
            if note not in self.notes:
                self.notes.append(note)
            held |= {path.stem for path in _files(self.results / ".tickets")}
        return held

    def _stages_in_work(self) -> set[str]:
        """Stages of the jobs that hold a lock; all of them for a job whose ticket is unknown."""
        return {str(self._ticket(digest).get("stage", "prepare")) for digest in self._held_digests()}

    def _held_digests(self) -> set[str]:
        files = (path for path in _files(self.results / ".locks") if DIGEST_NAME.fullmatch(path.name))
        return {path.name for path in files if self._held(path)}

    def _needed_by_work(self) -> set[str]:
        """What jobs in work, and those that Snakemake may still start, are made from, and they themselves."""
        work = frozenset(self._in_work())
        if work not in self._closures:
            for digest in sorted(work):
                if not self._known(digest):
                    raise UserError(
                        f"{self.results}/.locks/{digest}: a job is running of which no ticket says what it needs: "
                        "try again when it has ended"
                    )
            self._closures = {work: self._closure(work)}
        return self._closures[work]

    def _known(self, digest: str) -> bool:
        planned = any(digest in plan.jobs for plan in self.plans)
        return planned or digest in self.store.places or bool(self._ticket(digest))

    def _held(self, lock: Path) -> bool:
        """Whether a process holds a lock file; those of other machines are believed for some days."""
        return held_by_other(lock, FOREIGN_LOCK_DAYS * DAY)

    # what may go

    def _results(self, folders: list[tuple[str, Path]]) -> Iterator[Item]:
        """Results that nothing needs, outermost folders only; unfinished ones too."""
        going: set[Path] = set()
        for digest, folder in folders:
            if any(above in going for above in folder.parents):
                continue
            inside = [other for other, place in folders if folder in place.parents] if _nested(folder) else []
            if digest in self.needed or any(other in self.needed for other in inside):
                continue
            record = self.store.all.get(digest)
            if record is None and not (folder / RECORD).exists():
                if inside:
                    continue  # the place of an untuned model's answers; each of them is looked at itself
                if self.now - _mtime(folder) < DAY:
                    continue  # a job may be about to begin
            going.add(folder)
            kind = record.stage if record else "unfinished" if not (folder / RECORD).exists() else "broken"
            label = record.label if record else ""
            yield Item(kind=kind, path=folder, bytes=_bytes(folder), digest=digest, label=label)

    def _images(self, folders: list[tuple[str, Path]]) -> Iterator[Item]:
        """Images that no kept data set names."""
        store = self.results / "images"
        if not store.is_dir():
            return
        if "prepare" in self._stages_in_work():
            self.notes.append(f"{store}: a data set is being prepared: all images are kept")
            return
        used: set[str] = set()
        for digest, folder in folders:
            record = self.store.all.get(digest)
            unclear = record is None and (folder / RECORD).exists()
            if unclear and folder.parent == self.results / "data":
                self.notes.append(f"{store}: {folder / RECORD} cannot be read: all images are kept")
                return
            if digest in self.needed and record is not None and record.stage == "prepare":
                try:
                    used |= _images_of(folder)
                except Exception as error:  # whatever the reader raises: rather keep too much
                    said = str(error).splitlines()[0] if str(error) else type(error).__name__
                    self.notes.append(f"{store}: {folder} cannot be read ({said}): all images are kept")
                    return
        limit = self.now - max(self.keep_days, 1.0) * DAY
        for path in sorted(store.glob("??/*")):
            if path.name not in used and _mtime(path) < limit:
                yield Item(kind="image", path=path, bytes=path.stat().st_size)

    def _caches(self) -> Iterator[Item]:
        """Vision features that no kept result was made with; jobs still to run may want any, so then none goes."""
        planned = {digest: job for plan in self.plans for digest, job in plan.jobs.items()}
        to_run = [job for digest, job in planned.items() if digest not in self.store.places]
        files = sorted((self.results / "cache").glob("*.safetensors"))
        if not files:
            return
        if any(job.cache_vision for job in to_run):
            self.notes.append(
                f"{self.results / 'cache'}: jobs of these studies are still to run: features are kept"
            )
            return
        sizes = {
            record.facts["features"].get("bytes")
            for digest, record in self.store.all.items()
            if digest in self.needed and isinstance(record.facts.get("features"), dict)
        }
        limit = self.now - max(self.keep_days, 1.0) * DAY
        for path in files:
            if path.stat().st_size not in sizes and _mtime(path) < limit:
                yield Item(kind="features", path=path, bytes=path.stat().st_size)

    def _views(self) -> Iterator[Item]:
        """Tables, figures and pages of studies that there are no longer."""
        current = {(job.stage, job.label) for plan in self.plans for job in plan.jobs.values()}
        for marker in sorted(self.results.glob("*/.made/*.json")):
            try:
                content = json.loads(marker.read_bytes())
                stage, study = content["stage"], content["label"]
                names = VIEW_FILES[stage]
            except (OSError, ValueError, KeyError, TypeError):
                self.notes.append(f"{marker}: not a marker: kept")
                continue
            if (stage, study) in current or _mtime(marker) > self.now - self.keep_days * DAY:
                continue
            if any(digest_in(marker.stem) == digest for digest in self.needed):
                continue
            files = [marker, *(self.results / name.format(study) for name in names)]
            for path in files:
                if path.exists():
                    yield Item(kind="view", path=path, bytes=path.stat().st_size, label=study)

    def _staging(self) -> Iterator[Item]:
        """Checkpoints and partial downloads: of finished results, and of those that nobody wants any more."""
        work = self._in_work()
        for folder in sorted(_entries(self.results / ".staging")):
            digest = folder.name
            resumable = digest in self.needed and digest not in self.store.places
            if digest not in work and not resumable and self._old(folder):
                yield Item(kind="staging", path=folder, bytes=_bytes(folder), digest=digest)
        for folder in sorted(self.results.glob(".bless-*")):
            if self.now - _mtime(folder) > DAY:
                yield Item(kind="staging", path=folder, bytes=_bytes(folder))

    def _partials(self, folders: list[tuple[str, Path]]) -> Iterator[Item]:
        """Left-overs of killed jobs in results that stay: partial folders and temporary files."""
        work = self._in_work()
        for digest, folder in folders:
            if digest not in self.needed or digest in work:
                continue
            for path in sorted(folder.glob(".*")):
                temporary = path.name.startswith((PARTIAL, f".{RECORD}."))
                if temporary and self.now - _mtime(path) > DAY:
                    yield Item(kind="left-over", path=path, bytes=_bytes(path), digest=digest)

    def _tickets(self) -> Iterator[Item]:
        """Tickets, and notes of failures, of what nobody wants any more."""
        for kind, folder in (("ticket", ".tickets"), ("failure", NOTES)):
            for path in sorted(_files(self.results / folder)):
                if path.name != INDEX and path.stem not in self.needed and self._old(path):
                    yield Item(kind=kind, path=path, bytes=path.stat().st_size)

    def _announcements(self) -> Iterator[Item]:
        """What killed processes said of themselves."""
        for path in sorted(_files(self.results / RUNNING)):
            lock = (
                path.with_suffix(".lock")
                if path.name.startswith("run-")
                else self.results / ".locks" / path.stem
            )
            if not self._held(lock) and self.now - _mtime(path) > DAY:
                yield Item(kind="left-over", path=path, bytes=path.stat().st_size)

    def _trash(self) -> Iterator[Item]:
        for path in sorted(_entries(self.results / TRASH)):
            yield Item(kind="trash", path=path, bytes=_bytes(path))

    def _old(self, path: Path) -> bool:
        return _mtime(path) <= self.now - self.keep_days * DAY


@contextlib.contextmanager
def _alone(results: Path, digest: str) -> Iterator[bool]:
    """Holds the lock of a digest, if there is one, without waiting; tells whether it could be had."""
    if not digest:
        yield True
        return
    with unless_locked(results / ".locks" / digest) as free:
        yield free


def _images_of(folder: Path) -> set[str]:
    """Names of the images in a prepared data set."""
    import polars as pl

    used: set[str] = set()
    for path in folder.glob("*.parquet"):
        column = pl.scan_parquet(path).select("image").collect()["image"]
        used.update(name for name in column.unique().to_list() if name)
    return used


def _nested(folder: Path) -> bool:
    return any(path.is_dir() and digest_in(path.name) for path in folder.iterdir())


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_file()]


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; a file with several names counts where it is met."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(
        inner.lstat().st_size for inner in path.rglob("*") if inner.is_file() and not inner.is_symlink()
    )


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
