"""The plan of a configuration: which jobs run, what each takes, and the sums that people plan by."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from peftbench.failures import noted, read_failure
from peftbench.graph import Job, Plan
from peftbench.planning.calibrate import NOTHING, Calibration, Error, calibrate
from peftbench.planning.estimate import Estimator
from peftbench.planning.hardware import Hardware
from peftbench.planning.records import Measurement, Measurements, read_measurements
from peftbench.planning.schedule import Schedule, Task, critical_path, list_schedule, tails
from peftbench.planning.subject import Subject, Subjects, subjects_of
from peftbench.planning.texts import Lengths, read_assumptions
from peftbench.planning.wanted import Wanted
from peftbench.stages import RULES
from peftbench.store import FAILED

REASONS = {
    "new": "never made",
    "failed": "failed when last tried",
    "code": "made before by other code",
    "settings": "made before with other settings",
    "inputs": "made before from other inputs",
}
"""Why a job runs, by its note of failure or the nearest record of the same stage and label -> words for people."""
FAILURES_LISTED = 8
"""Failed runs that a plan names one by one."""
UNKNOWN_ERROR = 0.5
"""Relative error that is reckoned with where no record has corrected an estimate."""


class Planned(Struct, frozen=True, kw_only=True):
    """One job that runs. Seconds and bytes."""

    digest: str
    stage: str
    label: str
    model: str
    dataset: str
    method: str
    study: str
    """The first that asks for it."""
    reason: str
    seconds: float
    gpu_seconds: float
    cpu_seconds: float
    uncorrected_seconds: float
    """What the estimate is without any record."""
    basis: str
    error: float
    """Median relative error of its stage over the records; a guess where there are none."""
    cpus: int
    """Cores that it keeps busy."""
    flops: float
    gpu_memory: float
    host_memory: float
    micro_batch: int
    fits: bool
    disk: float
    download: float | None


class Sums(Struct, kw_only=True):
    """Over some jobs."""

    run: int = 0
    reused: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    flops: float = 0.0
    gpu_memory: float = 0.0
    """The largest of one job."""
    disk: float = 0.0

    def add(self, job: Planned) -> None:
        """One more job that runs."""
        self.run += 1
        self.gpu_hours += job.gpu_seconds / 3600
        self.cpu_hours += job.cpu_seconds / 3600
        self.flops += job.flops
        self.gpu_memory = max(self.gpu_memory, job.gpu_memory)
        self.disk += job.disk


class MicroBatch(Struct, frozen=True, kw_only=True):
    """What fits the device, for the largest of a model's runs with one method."""

    model: str
    method: str
    connector: str
    micro_batch: int
    """0: not even one example."""
    memory: float
    """At that micro-batch."""


class Result(Struct, frozen=True, kw_only=True):
    """A whole plan."""

    title: str
    hardware_name: str
    hardware: Hardware
    gpus: int
    price: float
    jobs: list[Planned]
    schedule: Schedule
    path: list[str]
    """Digests along the critical path."""
    path_seconds: float
    walls: dict[int, float]
    """Wall time in seconds by number of devices."""
    total: Sums
    stages: dict[str, Sums]
    models: dict[str, Sums]
    methods: dict[str, Sums]
    studies: dict[str, Sums]
    reasons: dict[str, int]
    download: float
    unknown_downloads: list[str]
    micro_batches: list[MicroBatch]
    errors: list[Error]
    notes: list[str]
    problems: list[str]

    @property
    def cost(self) -> float:
        """In the hardware's currency: of the GPU-hours, or of the CPU machine for as long as it takes."""
        hours = self.total.gpu_hours if self.hardware.kind == "gpu" else self.schedule.seconds / 3600
        return hours * self.price

    @property
    def energy(self) -> float:
        """In kWh, of the devices under load."""
        hours = self.total.gpu_hours if self.hardware.kind == "gpu" else self.schedule.seconds / 3600
        return hours * self.hardware.watts / 1000


class Planner:
    """Plans the jobs of one configuration on one kind of hardware."""

    def __init__(
        self, plan: Plan, hardware_name: str, hardware: Hardware, root: Path, records: Sequence[Path] = ()
    ) -> None:
        """``root``: where relative paths of results start; ``records``: further results folders to learn from."""
        self.plan, self.root = plan, root
        self.hardware_name, self.hardware = hardware_name, hardware
        self.assumptions = read_assumptions(plan.settings.root)
        self.lengths = Lengths(self.assumptions)
        self.measured: Measurements = read_measurements([root / plan.results, *records])
        about = subjects_of(self.measured.all, self.measured.problems)
        self.lengths.learn(about)
        built = {
            str(one.spec.get("model")): root / plan.results / one.path / "config.json"
            for one in self.measured.all
            if one.stage == "build"
        }
        self.estimator = Estimator(plan.settings, hardware, self.assumptions, self.lengths, built)
        self.calibration: Calibration = calibrate(about, self.estimator, self.assumptions)
        self._errors = {e.stage: e.median / 100 for e in self.calibration.errors if e.target == "wall"}
        self._kept = {
            s.feature_key for s, one in about if s.cached and s.computes is not None and not one.failed
        }
        self._filled: set[tuple[str, str, str]] = set()
        self._failures = noted(root / plan.results)
        self._before: dict[tuple[str, str], Measurement] = {}
        for one in sorted(self.measured.all, key=lambda m: m.started):
            self._before[one.stage, one.label] = one
        self._codes: dict[str, Any] = {}

    def result(
        self, asked: Wanted, run: set[str], title: str, gpus: int = 1, price: float | None = None
    ) -> Result:
        """The plan of the jobs ``run``; all others that are asked for are reused."""
        subjects = Subjects(self.plan.settings.base_of)
        subjects.learn_weights([job for job in asked.jobs.values() if job.stage == "build"])
        self._filled = set(self._kept)
        jobs = []
        for digest in _upstream_first(asked, run):
            jobs.append(self._planned(asked.jobs[digest], subjects, asked.study.get(digest, "")))
        tasks = {
            job.digest: Task(
                name=job.digest, seconds=job.seconds, pool=self._pool(job), after=asked.after[job.digest]
            )
            for job in jobs
        }
        longest = tails(tasks)
        path = critical_path(tasks, longest)
        schedule = list_schedule(tasks, self._lanes(gpus), longest)
        counts = sorted({1, 2, 4, 8, 16, gpus}) if self.hardware.kind == "gpu" else [gpus]
        walls = {
            n: schedule.seconds if n == gpus else list_schedule(tasks, self._lanes(n), longest).seconds
            for n in counts
        }
        total, stages, models, methods, studies = Sums(), {}, {}, {}, {}  # type: ignore[var-annotated]
        for job in jobs:
            total.add(job)
            for table, key in (
                (stages, job.stage),
                (models, job.model),
                (methods, job.method),
                (studies, job.study),
            ):
                if key:
                    table.setdefault(key, Sums()).add(job)
        for digest, one in asked.jobs.items():
            if digest not in run:
                total.reused += 1
                stages.setdefault(one.stage, Sums()).reused += 1
        reasons: dict[str, int] = {}
        for job in jobs:
            reasons[job.reason] = reasons.get(job.reason, 0) + 1
        return Result(
            title=title,
            hardware_name=self.hardware_name,
            hardware=self.hardware,
            gpus=gpus,
            price=self.hardware.price_per_hour if price is None else price,
            jobs=jobs,
            schedule=schedule,
            path=path,
            path_seconds=longest[path[0]] if path else 0.0,
            walls=walls,
            total=total,
            stages={stage: stages[stage] for stage in RULES if stage in stages},
            models=models,
            methods=methods,
            studies=studies,
            reasons=reasons,
            download=sum(job.download or 0.0 for job in jobs),
            unknown_downloads=[job.label for job in jobs if job.download is None],
            micro_batches=_micro_batches(jobs, subjects, asked.jobs),
            errors=self.calibration.errors,
            notes=self._notes(jobs),
            problems=[*self.measured.problems, *self.estimator.problems.values()],
        )

    def alone(self, job: Job, subjects: Subjects) -> Planned:
        """One job, as if none ran before it but those that have left records."""
        self._filled = set(self._kept)
        return self._planned(job, subjects, "")

    def _planned(self, job: Job, subjects: Subjects, study: str) -> Planned:
        subject = subjects.of(job)
        computes = self._computes(subject)
        execution = self.plan.main.execution
        found = self.estimator.estimate(subject, computes)
        correct, basis = self.calibration.correct, self.calibration.basis(subject, found.seconds)
        wall = correct(subject, "wall", found.fixed, found.work)
        on_gpu = self.hardware.kind == "gpu" and subject.heavy
        cpu = correct(subject, "cpu", found.fixed, found.work)
        if on_gpu and ("cpu", subject.stage) not in self.calibration.fits:
            cpu = wall * (1 + execution.workers)
        return Planned(
            digest=job.digest,
            stage=job.stage,
            label=job.label,
            model=subject.model,
            dataset=subject.dataset,
            method=subject.method,
            study=study,
            reason=self._reason(job, subject),
            seconds=wall,
            gpu_seconds=wall if on_gpu else 0.0,
            cpu_seconds=cpu,
            uncorrected_seconds=found.seconds,
            basis=basis,
            error=self._errors.get(job.stage, UNKNOWN_ERROR) if basis != NOTHING else UNKNOWN_ERROR,
            cpus=max(execution.threads, 1 + execution.workers if subject.heavy else 1),
            flops=found.flops,
            gpu_memory=self._peak(subject, found.device_memory) if on_gpu else 0.0,
            host_memory=found.host_memory if on_gpu else self._peak(subject, found.host_memory),
            micro_batch=found.micro_batch,
            fits=found.fits,
            disk=found.disk,
            download=found.download,
        )

    def _peak(self, subject: Subject, memory: float) -> float:
        return self.calibration.correct(subject, "peak", memory, 0.0)

    def _computes(self, subject: Subject) -> int:
        """Images whose features a job computes: the first one of its list that runs; the later ones find them."""
        if not subject.cached or subject.feature_key in self._filled:
            return 0
        self._filled.add(subject.feature_key)
        if subject.stage == "predict":
            return subject.test_rows
        config = self.plan.settings.dataset(subject.dataset, "the plan")
        held_out = (
            subject.test_rows if subject.spec.get("eval_loss") and not subject.spec.get("validation") else 0
        )
        return config.splits.get("train", 0) + held_out

    def _pool(self, job: Planned) -> str:
        if job.stage == "retrieve":
            return "network"
        return "gpu" if job.gpu_seconds else "cpu"

    def _lanes(self, gpus: int) -> dict[str, int]:
        cores = self.hardware.cores * gpus
        threads = self.plan.main.execution.threads
        return {"gpu": gpus, "cpu": max(1, cores // threads), "network": 1}

    def _reason(self, job: Job, subject: Subject) -> str:
        """Why it has no result: by what differs from the newest record of the same stage and label."""
        if job.digest in self._failures:
            return "failed"
        before = self._before.get((job.stage, job.label))
        if before is None:
            return "new"
        if self._json(before.code.decode()) != self._json(job.code):
            return "code"
        spec = subject.spec or json.loads(job.spec)
        return "settings" if before.spec != spec else "inputs"

    def _json(self, text: str) -> Any:
        if text not in self._codes:
            self._codes[text] = json.loads(text)
        return self._codes[text]

    def _notes(self, jobs: Sequence[Planned]) -> list[str]:
        found, notes = self.calibration, []
        if found.elsewhere:
            notes.append(f"{found.elsewhere} records of model jobs are from other devices: not used here")
        if found.unknown:
            notes.append(
                f"{found.unknown} records are of models or data sets that the configuration lacks: not used"
            )
        blind = sorted({job.stage for job in jobs if job.basis == NOTHING})
        if blind:
            notes.append(
                f"no records yet of {', '.join(blind)}: planned from sizes and assumed efficiencies alone"
            )
        small = [job for job in jobs if not job.fits]
        if small:
            largest = max(small, key=lambda job: job.gpu_memory or job.host_memory)
            notes.append(
                f"{len(small)} jobs do not fit {self.hardware.memory / 1e9:.0f} GB, the largest needs "
                f"{(largest.gpu_memory or largest.host_memory) / 1e9:.0f} GB: {largest.stage} {largest.label}"
            )
        return notes + self._failed_before(jobs)

    def _failed_before(self, jobs: Sequence[Planned]) -> list[str]:
        """Why runs failed when they were last tried; not those that only followed others."""
        results = self.root / self.plan.results
        notes = [read_failure(results, job.digest) for job in jobs if job.reason == "failed"]
        own = [n for n in notes if n and not any(above in self._failures for above in n.inputs.values())]
        lines = [
            f"failed when last tried: {n.stage} {n.label}: {n.facts[FAILED]}" for n in own[:FAILURES_LISTED]
        ]
        if len(own) > FAILURES_LISTED:
            lines.append(
                f"and {len(own) - FAILURES_LISTED} more that failed, each with a note in {results}/.failed"
            )
        return lines


def _upstream_first(asked: Wanted, run: set[str]) -> list[str]:
    """Digests to run in the order in which studies ask, each after what it needs."""
    order: list[str] = []
    state: dict[str, bool] = {}
    for start in asked.jobs:
        stack = [start] if start in run else []
        while stack:
            digest = stack[-1]
            if digest in state:
                stack.pop()
                if not state[digest]:
                    state[digest] = True
                    order.append(digest)
                continue
            state[digest] = False
            stack.extend(before for before in asked.after[digest] if before in run and before not in state)
    return order


def _micro_batches(
    jobs: Sequence[Planned], subjects: Subjects, all_jobs: Mapping[str, Job]
) -> list[MicroBatch]:
    found: dict[tuple[str, str, str], Planned] = {}
    for job in jobs:
        if job.stage == "train":
            key = (job.model, job.method, str(subjects.spec(all_jobs[job.digest])["connector"]))
            known = found.get(key)
            if known is None or job.micro_batch < known.micro_batch:
                found[key] = job
    return [
        MicroBatch(
            model=model,
            method=method,
            connector=connector,
            micro_batch=job.micro_batch,
            memory=job.gpu_memory or job.host_memory,
        )
        for (model, method, connector), job in found.items()
    ]
