"""What is submitted as one SLURM job: one Snakemake job, or several small ones that run in turn."""

import hashlib
import math
import os
import re
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm_resilient.states import START, Cause

LONGEST_WAIT = 4.0
"""Times the wait after which small jobs wait no longer, though others still come."""
MEMBERS = re.compile(r"snakemake:([0-9a-f,]+)")


class Asked(dict):
    """Resources by name, as attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(eq=False)
class Pack:
    """Snakemake jobs in one SLURM job, and what has become of it."""

    jobs: list[Any]
    slurm_id: str | None = None
    """None while it is being submitted."""
    log: Path = Path()
    ends: Counter = field(default_factory=Counter)
    """How often it was submitted again, by cause."""
    missing_since: float | None = None
    refusal: str = ""
    """Why it could not be submitted again."""
    warned: set[str] = field(default_factory=set)
    before: dict[str, Any] = field(default_factory=dict)
    time_factor: float = 1.0
    memory_factor: float = 1.0
    capped: bool = False
    """Whether its partition does not allow the time that it wants: it then goes on from limit to limit."""

    def __post_init__(self) -> None:
        self.before = {str(path): signature(path) for job in self.jobs for path in job.output}

    @property
    def key(self) -> str:
        """Those of its members: what a later run of Snakemake finds them by."""
        return ",".join(key_of(job) for job in self.jobs)

    @property
    def name(self) -> str:
        """For people: rule and wildcards."""
        first = name_of(self.jobs[0])
        if len(self.jobs) == 1:
            return first
        return f"{self.jobs[0].resources.get('slurm_batch')}:{len(self.jobs)}-jobs".replace(" ", "/")

    @property
    def folder(self) -> str:
        """Of its log, below that of all logs."""
        return re.sub(r"[^\w./+=,-]", "_", self.name.replace(":", "/", 1))

    def grow(self, cause: Cause, time_growth: float, memory_growth: float) -> None:
        """Ask for more of what was short, and of nothing else."""
        if cause is Cause.TIME:
            self.time_factor *= time_growth
        if cause is Cause.MEMORY:
            self.memory_factor *= memory_growth

    def made(self, job: Any) -> bool:
        """Whether all outputs of a member are there and not those of before its submission."""
        return all(
            signature(path) is not None and signature(path) != self.before.get(str(path))
            for path in job.output
        )


class View:
    """A pack as the stock plugin's functions want to see a job."""

    def __init__(self, pack: Pack, longest: int | None) -> None:
        """``longest``: minutes that its partition allows; None: not known."""
        resources = [Asked(job.resources.items()) for job in pack.jobs]
        asked = Asked(resources[0])
        for name in ("mem_mb", "gpu", "cpus_per_task"):
            if any(one.get(name) for one in resources):
                asked[name] = max(int(one.get(name) or 0) for one in resources)
        minutes = [one["runtime"] for one in resources if one.get("runtime")]
        if minutes:
            total = sum(minutes) if len(minutes) < 2 else batch_minutes(resources)
            asked["runtime"] = -(-int(total * pack.time_factor * 1000) // 1000)
            pack.capped = longest is not None and asked["runtime"] > longest
            if longest is not None:
                asked["runtime"] = min(asked["runtime"], longest)
        if asked.get("mem_mb"):
            asked["mem_mb"] = int(asked["mem_mb"] * pack.memory_factor)
        self.several = int(asked.get("nodes") or 1)
        if self.several > 1:
            # One task on each node; GPUs are asked for by node, as a total could be spread unevenly.
            gpus = int(asked.pop("gpu", 0) or 0)
            model = asked.pop("gpu_model", None)
            if gpus:
                asked["gres"] = ":".join(filter(None, ("gpu", model, str(gpus // self.several))))
            else:
                asked["tasks"] = self.several
        elif not asked.get("gpu"):
            asked.pop("gpu", None)
            asked.pop("gpu_model", None)
        self.resources = asked
        self.threads = max(job.threads for job in pack.jobs)

    @property
    def extra(self) -> str:
        """Options that the stock plugin does not have."""
        return " --ntasks-per-node=1" if self.several > 1 else ""


def batch_minutes(resources: list[Asked]) -> float:
    """Time limit of small jobs in turn: what each is expected to take, thrice, and once what one may take."""
    expected = sum(float(one.get("slurm_batch_seconds") or 0.0) for one in resources)
    return max(float(one["runtime"]) for one in resources) + 3.0 * expected / 60.0


def key_of(job: Any) -> str:
    """Identity of a job over runs of Snakemake: its outputs, wherever the working directory is."""
    places = sorted(os.path.realpath(str(path)) for path in job.output)
    return hashlib.sha256("\0".join([job.name, *places]).encode()).hexdigest()[:16]


def name_of(job: Any) -> str:
    """Rule and wildcards: ``train_adapter:model/data set/method/digest``."""
    wildcards = [] if job.is_group() else [str(value) for value in job.wildcards]
    name = ":".join(filter(None, (job.name, "/".join(wildcards))))
    return re.sub(r"[^\w./:+=-]", "_", name)[:180]


def members(comment: str) -> list[str]:
    """Keys in the comment of a SLURM job; none where it is not one of ours."""
    found = MEMBERS.search(comment)
    return found.group(1).split(",") if found else []


def signature(path: Any) -> tuple[int, int, int] | None:
    """What tells two states of a file apart; None where it is not there."""
    try:
        facts = Path(path).stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def script(command: str, folder: Path) -> str:
    """The batch script. It outlives SIGTERM, so that its children have SLURM's grace time to save what they have.

    The status goes to a file too, for clusters that forget jobs soon and have no accounting.
    """
    status = f"{shlex.quote(str(folder))}/$SLURM_JOB_ID.exit.log"
    return "\n".join(
        (
            "#!/bin/sh",
            "trap : TERM INT USR1 USR2",
            f'echo "{START} $SLURM_JOB_ID on $SLURMD_NODENAME, restart ${{SLURM_RESTART_COUNT:-0}}"',
            f"rm -f {status}",
            command,
            "status=$?",
            f"echo $status >{status}.new && mv {status}.new {status}",
            "exit $status",
            "",
        )
    )


class Waiting:
    """Small jobs that wait for others of their kind."""

    def __init__(self, most_seconds: float, wait: float) -> None:
        self.most_seconds, self.wait = most_seconds, wait
        self._lock = threading.Lock()  # jobs come from Snakemake's thread, and leave by the watching one too
        self._jobs: dict[str, list[Any]] = {}
        self._since: dict[str, tuple[float, float]] = {}
        """Kind -> when the first one came, and the last one."""

    def add(self, jobs: Iterable[Any]) -> list[list[Any]]:
        """Take jobs in; lists of jobs that are to be submitted at once: full ones, and those that share nothing."""
        ready, now = [], time.monotonic()
        with self._lock:
            for job in jobs:
                kind = None if job.is_group() else job.resources.get("slurm_batch")
                if not kind:
                    ready.append([job])
                    continue
                self._jobs.setdefault(kind, []).append(job)
                self._since[kind] = self._since.get(kind, (now, now))[0], now
            full = [
                kind
                for kind, held in self._jobs.items()
                if sum(map(seconds_of, held)) >= max(self.most_seconds, 1.0)
            ]
            return ready + self._leave(full)

    def due(self) -> list[list[Any]]:
        """Lists of jobs that have waited long enough: for a while after the last one came, and not for ever."""
        now = time.monotonic()
        with self._lock:
            since = self._since.items()
            return self._leave(
                [
                    kind
                    for kind, (first, last) in since
                    if now - last >= self.wait or now - first >= LONGEST_WAIT * self.wait
                ]
            )

    def _leave(self, kinds: list[str]) -> list[list[Any]]:
        for kind in kinds:
            del self._since[kind]
        return [part for kind in kinds for part in shares(self._jobs.pop(kind), self.most_seconds)]


def shares(jobs: list[Any], most_seconds: float) -> list[list[Any]]:
    """The jobs in as few lists of at most about so many seconds as there can be, all of about the same length."""
    total = sum(map(seconds_of, jobs))
    parts: list[list[Any]] = [[] for _ in range(max(1, math.ceil(total / max(most_seconds, 1.0))))]
    before = 0.0
    for job in jobs:
        middle = before + seconds_of(job) / 2
        parts[min(int(middle / total * len(parts)), len(parts) - 1)].append(job)
        before += seconds_of(job)
    return [part for part in parts if part]


def seconds_of(job: Any) -> float:
    """What a small job is expected to take."""
    return float(job.resources.get("slurm_batch_seconds") or 1.0)
