"""What to ask a cluster for: GPUs, memory and run time of a job, from its estimate, a margin and the attempt."""

import math
import os
from pathlib import Path
from typing import Any

from peftbench.graph import Job, Plan
from peftbench.jobs import upstream
from peftbench.planning.operations import RUNTIME_HOST
from peftbench.planning.plan_cli import HARDWARE_VARIABLE, pick_hardware
from peftbench.planning.subject import Subjects
from peftbench.planning.totals import Planned, Planner
from peftbench.planning.wanted import Wanted
from peftbench.spec import Execution

LEAST_MINUTES, LEAST_MB = 10, 1000
"""Of any job: starting takes its time and its memory whatever the estimate."""
SNAKEMAKE_MB = 350
"""Of the Snakemake process that runs each job inside its allocation."""
TIME_MARGIN, MEMORY_MARGIN = 1.25, 1.2
DEVIATIONS = 3.0
"""Median errors that the time is given besides."""
TIME_GROWTH, MEMORY_GROWTH = 2.0, 1.5
"""Per further attempt: a job that was stopped for asking too little asks for more."""
SHARED = ("train", "expose")
"""Stages whose work ``execution.processes`` and ``nodes`` share."""
FORKED = ("build", "expose", "train", "predict")
"""Stages of a cluster whose jobs, on a CPU, are forks of the warm worker."""
WORKER_PROCESSES = 2
"""Of the warm worker, beside such a job. They share its memory, but clusters without cgroups count it once for each."""
SMALL_SECONDS = 120.0
"""Jobs expected to take less are worth no place in a queue of their own: those of one kind may share one."""
NAMES = ("gpu", "nodes", "runtime", "mem_mb", "cpus_per_task", "slurm_batch", "slurm_batch_seconds")
"""Of the resources of rules that may run on a cluster."""


def resources_of(job: Planned, attempt: int = 1, execution: Execution | None = None) -> dict[str, Any]:
    """Resources by Snakemake's names: ``NAMES``. ``runtime`` is in minutes; memory and CPUs are those of one node.

    ``gpu`` counts those of all nodes. ``slurm_batch`` is the kind of a small job, empty for others.
    ``ValueError`` for attempts below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempt {attempt}: attempts count from 1")
    execution = execution or Execution()
    shared = job.stage in SHARED
    processes, nodes = (execution.processes, execution.nodes) if shared else (1, 1)
    minutes = job.seconds / 60.0 * (TIME_MARGIN + DEVIATIONS * job.error)
    megabytes = processes * job.host_memory / 1e6 * MEMORY_MARGIN
    if job.stage in FORKED and not job.gpu_seconds and execution.worker == "shared":
        megabytes += WORKER_PROCESSES * RUNTIME_HOST / 1e6
    small = job.seconds <= SMALL_SECONDS and processes * nodes == 1
    return {
        "gpu": processes * nodes if job.gpu_seconds else 0,
        "nodes": nodes,
        "runtime": math.ceil(max(LEAST_MINUTES, minutes) * TIME_GROWTH ** (attempt - 1)),
        "mem_mb": math.ceil(max(LEAST_MB, megabytes + SNAKEMAKE_MB) * MEMORY_GROWTH ** (attempt - 1)),
        "cpus_per_task": processes * job.cpus,
        "slurm_batch": f"{job.stage} {job.model}".strip() if small else "",
        "slurm_batch_seconds": math.ceil(job.seconds) if small else 0,
    }


class Requests:
    """Requests of the jobs of a plan. Nothing is read or estimated before one is asked for."""

    def __init__(self, plan: Plan, root: Path) -> None:
        """``root``: where relative paths of results start."""
        self.plan, self.root = plan, root
        self._planners: dict[str, Planner] = {}
        self._planned: dict[str, Planned] = {}
        self._subjects = Subjects(plan.settings.base_of)

    def of(self, job: Job, attempt: int = 1) -> dict[str, Any]:
        """See ``resources_of``; ``UserError`` where the hardware that is named does not exist."""
        return resources_of(self._estimated(job), attempt, self.plan.main.execution)

    def micro_batch(self, job: Job) -> int | None:
        """Largest micro-batch of a training that fits the GPU, by the estimate of its memory.

        None where not even one example fits: then the loop begins with the whole share of the global batch and
        halves it when memory runs out.
        """
        return self._estimated(job).micro_batch or None

    def _estimated(self, job: Job) -> Planned:
        if job.digest not in self._planned:
            self._planned[job.digest] = self._planner(job).alone(job, self._subjects)
        return self._planned[job.digest]

    def _planner(self, job: Job) -> Planner:
        """For the hardware that is named, or the one that suits the job's own model."""
        asked = Wanted(jobs={one.digest: one for one in upstream([job])}, after={}, study={})
        name, hardware = pick_hardware(self.plan, asked, os.environ.get(HARDWARE_VARIABLE) or None)
        if name not in self._planners:
            self._planners[name] = Planner(self.plan, name, hardware, self.root)
        return self._planners[name]
