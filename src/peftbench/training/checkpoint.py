"""Checkpoints of a running training, from which a killed one goes on as if nothing had happened.

A checkpoint holds all that decides the steps to come: trained weights, the optimizer's state (under ZeRO each
process's part of it), random number generators, how far the run is, the rows of its logs, and the state of a method's
dynamics. It lies in the run's staging folder, whose name is the run's digest, so one of other settings or other code
cannot be taken. It is filled under a temporary name, synced and renamed; at most two are kept; a damaged one (sha256)
falls back to the one before. They are written by time: the next one comes after ``interval`` seconds, and not before
writing costs less than a twentieth of the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from peftbench.errors import Suspended, UserError
from peftbench.store import atomic_json, sync_directory
from peftbench.training.distributed import gathered, highest, meet, of_main
from peftbench.training.interrupt import Notice
from peftbench.training.snapshot import capture, file_hashes, in_words, layout_of, restore, save_content

if TYPE_CHECKING:
    from peftbench.training.loop import Trainer

FOLDER, KEPT, STARTS, MANIFEST = "checkpoints", "epochs", "starts.json", "manifest.json"
SHARED = "shared.pt"
"""What is the same in all processes; the first one writes it."""
MOST = 2
SHARE = 20.0
"""Writing may take one part in so many of a run's time."""
DISK = 200e6
"""Bytes per second of a slow disk: how long the first checkpoint may take, before one was timed."""
GO_ON, WRITE, STOP = 0, 1, 2


class State(msgspec.Struct):
    """How far a run is, beside what its trainer holds."""

    step: int = 0
    """Steps done."""
    epoch: int = 0
    """Epochs done, with their evaluation."""
    first: float | None = None
    last: float | None = None
    evaluations: list[float] = []
    seconds: float = 0.0
    """Of work, over all starts."""
    log: str = ""
    evals: str = ""
    kept: dict[str, dict[str, str]] = {}
    """Epochs whose weights are kept: sha256 of their files."""


class _Damaged(Exception):
    """A checkpoint is not what it was when it was written."""


class Checkpoints:
    """The checkpoints of one run; without a ``staging`` folder there are none, and nothing stops the run early.

    A context: in it SIGTERM asks for a checkpoint and the run's end (``Suspended``) instead of ending it at once.
    """

    def __init__(self, trainer: Trainer, staging: Path | None, interval: float) -> None:
        self.trainer, self.staging, self.interval = trainer, staging, interval
        self.notice = Notice()
        self.starts, self.resumed = 1, 0
        self.written, self.spent = 0, 0.0
        self.total = 0
        """Steps of the whole run, for messages."""
        self.longest = 0.0
        """Seconds of the longest step."""
        self.write_seconds = _bytes(trainer) / DISK
        self.due = 0.0

    @property
    def folder(self) -> Path:
        """Where they lie."""
        assert self.staging is not None
        return self.staging / FOLDER

    def __enter__(self) -> Checkpoints:
        if self.staging is not None:
            self.notice.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.staging is not None:
            self.notice.__exit__(*error)

    # --- going on ---

    def resume(self, total: int) -> State:
        """Put the trainer where the newest good checkpoint left it; how far that is.

        ``UserError`` for a checkpoint of another number of processes, another ZeRO stage or another kind of device.
        """
        self.total = total
        state = State()
        if self.staging is not None:
            if self.trainer.rank == 0:
                self._count_start()
                self.notice.ask_for_the_end()
            for name in of_main(self.trainer.accelerator, self._names()):
                found = self._try(self.folder / name)
                if found is not None:
                    state = found
                    self._say(
                        f"going on after step {state.step} of {total} (start {self.starts} of this run)"
                    )
                    if self.trainer.rank == 0:
                        self.resumed += 1
                        self._note_starts()
                    break
            else:
                if self.starts > 1:
                    self._say(f"start {self.starts} of this run: no checkpoint was left, it begins anew")
        self._schedule()
        return state

    def _count_start(self) -> None:
        assert self.staging is not None
        with contextlib.suppress(OSError, ValueError, KeyError):
            counts = json.loads((self.staging / STARTS).read_text())
            self.starts, self.resumed = int(counts["starts"]) + 1, int(counts["resumed"])
        self._note_starts()

    def _note_starts(self) -> None:
        assert self.staging is not None
        with contextlib.suppress(UserError, OSError):  # a full disk ends no training that may finish
            atomic_json(self.staging / STARTS, {"starts": self.starts, "resumed": self.resumed})

    def _names(self) -> list[str]:
        """Finished checkpoints, newest first."""
        found = [] if not self.folder.is_dir() else [path.name for path in self.folder.iterdir()]
        return sorted((name for name in found if re.fullmatch(r"step-\d{10}", name)), reverse=True)

    def _try(self, folder: Path) -> State | None:
        """Take up one checkpoint, in all processes or in none."""
        accelerator = self.trainer.accelerator
        reason, content = "", {}
        try:
            manifest = _manifest(folder)
            if manifest["layout"] == layout_of(self.trainer):
                content = self._read(folder, manifest["files"])
        except (_Damaged, OSError) as error:
            reason, manifest = str(error) or type(error).__name__, None
        if highest(accelerator, int(bool(reason))):
            self._say(
                f"warning: {folder}: damaged{f' ({reason})' if reason else ''}: the one before is tried"
            )
            meet(accelerator)  # all have looked at it
            if self.trainer.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            return None
        if not content:
            assert manifest is not None
            raise UserError(
                f"{folder}: this checkpoint was written by {in_words(manifest['layout'])}, this start has "
                f"{in_words(layout_of(self.trainer))}: start the run as it was, or delete the folder to begin anew"
            )
        restore(self.trainer, content[SHARED], content[_own(self.trainer.rank)])
        return msgspec.convert(content[SHARED]["state"], State)

    def _read(self, folder: Path, files: dict[str, str]) -> dict[str, Any]:
        """The shared part and this process's, verified; ``_Damaged`` where one is not as written."""
        import torch

        content = {}
        for name in (SHARED, _own(self.trainer.rank)):
            if name not in files:
                raise _Damaged(f"{name} is missing")
            with (folder / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != files[name]:
                    raise _Damaged(f"{name} has another sha256")
            content[name] = torch.load(folder / name, map_location="cpu", weights_only=True)
        if self.trainer.rank == 0:
            assert self.staging is not None
            for epoch, hashes in content[SHARED]["state"]["kept"].items():
                if file_hashes(self.staging / KEPT / epoch) != hashes:
                    raise _Damaged(f"the weights of epoch {epoch} are not as they were kept")
        return content

    # --- writing ---

    def after_step(self, state: Callable[[], State], seconds: float) -> None:
        """Write a checkpoint if it is time; ``Suspended`` after writing one if the run is to stop.

        Called by all processes after each step, which took ``seconds``.
        """
        if self.staging is None:
            return
        self.longest = max(self.longest, seconds)
        wish = self._wish()
        if wish == GO_ON:
            return
        current = state()
        done = self._write(current)
        if wish == STOP:
            left = f"step {current.step} of {self.total}"
            then = "its checkpoint is kept" if done else "the last checkpoint is kept"
            raise Suspended(f"{self.notice.reason or 'another process'}: stopped after {left}; {then}")

    def stop_wanted(self) -> bool:
        """Whether to stop, between two steps; the answer is the same in all processes."""
        return self.staging is not None and self._wish() == STOP

    def _wish(self) -> int:
        wish = GO_ON
        if self.notice.check(2 * (self.write_seconds + self.longest)):
            wish = STOP
        elif self.trainer.rank == 0 and time.monotonic() >= self.due:
            wish = WRITE
        return highest(self.trainer.accelerator, wish)

    def _schedule(self) -> None:
        self.due = time.monotonic() + max(self.interval, SHARE * self.write_seconds)

    def _write(self, state: State) -> bool:
        """Whether a checkpoint of this moment is there afterwards. One that cannot be written ends no training."""
        start = time.monotonic()
        trainer, name = self.trainer, f"step-{state.step:010d}"
        partial = self.folder / f".partial-{name}"
        reason, hashes = "", {}
        try:
            if trainer.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        except OSError as error:
            reason = error.strerror or str(error)
        if not highest(trainer.accelerator, int(bool(reason))):
            shared, own = capture(trainer)
            try:
                if trainer.rank == 0:
                    shared["state"] = msgspec.to_builtins(state)
                    hashes[SHARED] = save_content(shared, partial / SHARED)
                hashes[_own(trainer.rank)] = save_content(own, partial / _own(trainer.rank))
            except OSError as error:
                reason = error.strerror or str(error)
        hashes = {key: value for part in gathered(trainer.accelerator, hashes) for key, value in part.items()}
        failed = bool(highest(trainer.accelerator, int(bool(reason))))
        if trainer.rank == 0 and not failed:
            try:
                self._publish(partial, name, hashes)
            except (OSError, UserError) as error:
                reason = str(error)
        if highest(trainer.accelerator, int(bool(reason))):
            self._say(f"warning: no checkpoint after step {state.step}{f': {reason}' if reason else ''}")
            if trainer.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            self._schedule()
            return False
        self.write_seconds = time.monotonic() - start
        self.written, self.spent = self.written + 1, self.spent + self.write_seconds
        self._schedule()
        return True

    def _publish(self, partial: Path, name: str, hashes: dict[str, str]) -> None:
        """Give a whole checkpoint its name; those before the last one go."""
        atomic_json(partial / MANIFEST, {"layout": layout_of(self.trainer), "files": hashes})
        shutil.rmtree(self.folder / name, ignore_errors=True)
        partial.rename(self.folder / name)
        sync_directory(self.folder)
        for old in self._names()[MOST:]:
            shutil.rmtree(self.folder / old, ignore_errors=True)

    def keep_epoch(self, epoch: int, work: Path | None, write: Callable[[Path], None]) -> dict[str, str]:
        """Keep the weights that ``write`` puts into a folder until the run's end; sha256 of its files.

        ``work`` is where the run's files go, None in processes that write nothing.
        """
        if work is None:
            write(Path())
            return {}
        if self.staging is None:
            write(work / KEPT / str(epoch))
            return {}
        target = self.staging / KEPT / str(epoch)
        partial = target.with_name(f".partial-{epoch}")
        for old in (partial, target):
            shutil.rmtree(old, ignore_errors=True)
        write(partial)
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        partial.rename(target)
        sync_directory(target.parent)
        return file_hashes(target)

    def bring_kept(self, state: State, work: Path) -> None:
        """The kept weights of earlier epochs, as part of the result."""
        from peftbench.store import link_or_copy

        for epoch in state.kept if self.staging is not None else ():
            assert self.staging is not None
            folder = self.staging / KEPT / epoch
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    target = work / KEPT / epoch / path.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(path, target)

    def facts(self) -> dict[str, Any]:
        """For the record: how often the run was started and went on, and what checkpoints cost in the last start."""
        return {
            "starts": self.starts,
            "resumed": self.resumed,
            "checkpoints": self.written,
            "checkpoint_seconds": round(self.spent, 3),
        }

    def _say(self, line: str) -> None:
        if self.trainer.rank == 0:
            print(line, file=sys.stderr, flush=True)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {"layout": dict(found["layout"]), "files": dict(found["files"])}
    except (ValueError, TypeError, KeyError):
        raise _Damaged(f"{MANIFEST} is none") from None


def _own(rank: int) -> str:
    return f"process-{rank}.pt"


def _bytes(trainer: Trainer) -> float:
    """Size of a checkpoint: fp32 weights and the two moments of Adam."""
    parts = trainer.world if trainer.zero_stage else 1
    return 12.0 * sum(trainer.tuned.trainable.values()) / parts
