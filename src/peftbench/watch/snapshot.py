"""A look at what runs: how far each stage is, what runs now, what failed, what it took and may still take."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.failures import noted, read_failure
from peftbench.lease import held_by_other, seconds
from peftbench.running import FOLDER, Planned, Run, State, read_runs, read_states
from peftbench.stages import RULES
from peftbench.store import FAILED

LOG_LINES = 4
"""Last lines of a failed job's log that are shown."""
LOG_BYTES = 4000
TRUST = 5
"""A process of another machine counts as alive for so many times the lease's seconds after its last sign of life."""


class Stage(Struct, frozen=True, kw_only=True):
    """Jobs of one stage."""

    name: str
    done: int
    running: int
    failed: int
    total: int


class Running(Struct, frozen=True, kw_only=True):
    """A job at work."""

    title: str
    who: str
    steps: str
    note: str
    elapsed: float
    left: float | None


class Failure(Struct, frozen=True, kw_only=True):
    """A job that failed."""

    title: str
    reason: str
    log: str
    tail: list[str]


class View(Struct, frozen=True, kw_only=True):
    """All that is shown. Times in seconds."""

    place: str
    at_work: bool
    """Whether a Snakemake is."""
    elapsed: float
    done: int
    total: int
    stages: list[Stage]
    running: list[Running]
    failures: list[Failure]
    followers: int
    """Jobs that failed with what they are made from."""
    used: float
    left: float
    left_known: bool
    """Whether there is any estimate of it."""
    on_gpu: bool
    """Whether ``used`` and ``left`` are times of GPUs, not of jobs."""
    wall_left: float

    @property
    def failed(self) -> int:
        """Jobs without a result, whether by themselves or with others."""
        return len(self.failures) + self.followers


class Cost(Struct, frozen=True):
    """What a job takes: seconds, and those of GPUs."""

    wall: float
    gpu: float


class _Record(Struct):
    provenance: dict[str, Any]


class Watcher:
    """Looks at one results folder again and again."""

    def __init__(self, results: Path, idle: Run | None = None) -> None:
        """``idle``: what to show where no Snakemake is at work."""
        self.results, self.idle = results, idle
        self.runs: dict[str, Run] = {}
        """All that were seen at work."""
        self.estimates: dict[str, Cost] = {}
        self._spent: dict[str, Cost] = {}
        self._most = 1
        """Jobs at work at once, so far."""

    def alive(self) -> dict[str, Run]:
        """The Snakemakes that are at work now."""
        return {
            name: run
            for name, run in read_runs(self.results).items()
            if held_by_other(self.results / FOLDER / f"{name}.lock", TRUST * seconds())
        }

    def look(self) -> View:
        """The present state."""
        alive = self.alive()
        self.runs |= alive
        runs = list(self.runs.values()) or ([self.idle] if self.idle else [])
        jobs: dict[str, tuple[Planned, Path]] = {}
        before: dict[str, str] = {}
        for run in runs:
            jobs |= {digest: (job, Path(run.folder)) for digest, job in run.jobs.items()}
            before |= run.failed_before
        states = self._states(jobs)
        failures, followers = self._failures(jobs, before, states)
        done = self._done(jobs, failures.keys() | followers | states.keys())
        undone = [d for d in jobs if d not in done and d not in failures and d not in followers]
        on_gpu = any(cost.gpu for cost in (*self._spent.values(), *self.estimates.values()))
        left, known = self._left(undone, jobs, states)
        self._most = max(self._most, len(states))
        wall = sum(cost.wall for cost in left.values()) / self._most
        longest = max((cost.wall for digest, cost in left.items() if digest in states), default=0.0)
        running = [self._running(jobs.get(d), state, age) for d, (state, age) in states.items()]
        return View(
            place=str(self.results),
            at_work=bool(alive),
            elapsed=max((time.time() - run.started for run in alive.values()), default=0.0),
            done=len(done),
            total=len(jobs),
            stages=_stages(jobs, done, states, failures.keys() | followers),
            running=sorted(running, key=lambda one: -one.elapsed),
            failures=list(failures.values()),
            followers=len(followers),
            used=sum(cost.gpu if on_gpu else cost.wall for cost in self._spent.values())
            + sum(_age(state, age) * (state.gpus if on_gpu else 1) for state, age in states.values()),
            left=sum(cost.gpu if on_gpu else cost.wall for cost in left.values()),
            left_known=known,
            on_gpu=on_gpu,
            wall_left=max(wall, longest),
        )

    def _states(self, jobs: Mapping[str, Any]) -> dict[str, tuple[State, float]]:
        """Jobs whose process lives, with the seconds since they said how far they are."""
        now = time.time()
        return {
            digest: (state, max(0.0, now - said))
            for digest, (state, said) in read_states(self.results).items()
            if digest in jobs and held_by_other(self.results / ".locks" / digest, TRUST * seconds())
        }

    def _failures(
        self, jobs: Mapping[str, tuple[Planned, Path]], before: Mapping[str, str], states: Mapping[str, Any]
    ) -> tuple[dict[str, Failure], set[str]]:
        """What failed in these runs by itself, and what failed with it."""
        notes = {}
        for digest in noted(self.results) & jobs.keys() - states.keys():
            note = read_failure(self.results, digest)
            if note is not None and before.get(digest) != str(note.provenance.get("started")):
                notes[digest] = note
        own = {d: n for d, n in notes.items() if not any(above in notes for above in n.inputs.values())}
        found = {}
        for digest, note in own.items():
            job, folder = jobs[digest]
            log = folder / job.log if job.log else None
            found[digest] = Failure(
                title=f"{job.stage} {job.label}",
                reason=plain(str(note.facts[FAILED])),
                log=str(log or ""),
                tail=tail(log, plain(str(note.facts[FAILED]))) if log else [],
            )
        for digest, (state, _) in read_states(self.results).items():
            job_there = digest in jobs and digest not in states
            if job_there and not (jobs[digest][1] / jobs[digest][0].record).exists():
                log = Path(state.log) if state.log else None
                found[digest] = Failure(
                    title=f"{state.stage} {state.label}",
                    reason=f"ended without a word (killed?): {state.who}",
                    log=str(log or ""),
                    tail=tail(log) if log else [],
                )
        return found, notes.keys() - own.keys()

    def _done(self, jobs: Mapping[str, tuple[Planned, Path]], not_yet: set[str]) -> set[str]:
        """Jobs with a result; what each took is read once."""
        for digest in self._spent.keys() & not_yet:
            del self._spent[digest]
        for digest, (job, folder) in jobs.items():
            if digest in self._spent or digest in not_yet:
                continue
            try:
                data = (folder / job.record).read_bytes()
                seen = msgspec.json.decode(data, type=_Record).provenance
                self._spent[digest] = Cost(
                    float(seen.get("wall_seconds", 0.0)), float(seen.get("gpu_seconds", 0.0))
                )
            except OSError:
                continue
            except (ValueError, TypeError):
                self._spent[digest] = Cost(0.0, 0.0)
        return self._spent.keys() & jobs.keys()

    def _left(
        self,
        undone: list[str],
        jobs: Mapping[str, tuple[Planned, Path]],
        states: Mapping[str, tuple[State, float]],
    ) -> tuple[dict[str, Cost], bool]:
        """What each job may still take: by its own reckoning, or as the planner says, corrected by its stage so far."""
        expected = {digest: self.estimates.get(digest, Cost(1.0, 0.0)) for digest in jobs}
        known = bool(self.estimates.keys() & jobs.keys())
        seen: dict[str, list[tuple[Cost, Cost]]] = {}
        for digest, cost in self._spent.items():
            if digest in jobs:
                seen.setdefault(jobs[digest][0].stage, []).append((cost, expected[digest]))
        for digest, (state, age) in states.items():
            if state.left is not None:
                wall = _age(state, age) + max(0.0, state.left - age)
                made = Cost(wall, wall * state.gpus)
                seen.setdefault(jobs[digest][0].stage, []).append((made, expected[digest]))
        factors = {stage: _factor(pairs) for stage, pairs in seen.items()}
        left = {}
        for digest in undone:
            factor = factors.get(jobs[digest][0].stage)
            cost = expected[digest] if factor is not None or digest in self.estimates else Cost(0.0, 0.0)
            cost = Cost(cost.wall * (factor or 1.0), cost.gpu * (factor or 1.0))
            if digest in states:
                state, age = states[digest]
                wall = max(0.0, cost.wall - _age(state, age) if state.left is None else state.left - age)
                cost = Cost(wall, wall * state.gpus)
            left[digest] = cost
        return left, known or bool(factors)

    def _running(self, job: tuple[Planned, Path] | None, state: State, age: float) -> Running:
        steps = f"{state.what} {state.done}/{state.total}" if state.total else ""
        left = None if state.left is None else max(0.0, state.left - age)
        title = f"{state.stage} {state.label}"
        return Running(
            title=title,
            who=state.who,
            steps=steps,
            note=plain(state.note),
            elapsed=_age(state, age),
            left=left,
        )


def _factor(pairs: list[tuple[Cost, Cost]]) -> float | None:
    """How many times longer jobs took than was expected."""
    expected = sum(guess.wall for _, guess in pairs)
    return sum(cost.wall for cost, _ in pairs) / expected if expected else None


def _age(state: State, age: float) -> float:
    return state.elapsed + age


def _stages(
    jobs: Mapping[str, tuple[Planned, Path]], done: set[str], running: Mapping[str, Any], failed: set[str]
) -> list[Stage]:
    found = []
    for stage in RULES:
        of = {digest for digest, (job, _) in jobs.items() if job.stage == stage}
        if of:
            counts = {"done": len(of & done), "running": len(of & running.keys()), "failed": len(of & failed)}
            found.append(Stage(name=stage, total=len(of), **counts))
    return found


def tail(log: Path, said: str = "\n") -> list[str]:
    """The last lines of a log, without what would move a cursor, and without those that end with what was ``said``."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - LOG_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    lines = [plain(line) for line in text.splitlines()]
    return [line for line in lines if line and not line.endswith(said)][-LOG_LINES:]


def plain(text: str) -> str:
    """One line without control characters and escape codes."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
