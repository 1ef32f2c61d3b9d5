"""What to ask a cluster for: GPUs, memory and run time of a job, from its estimate, a margin and the attempt."""

import math
from typing import Any

from peftbench.planning.totals import Planned

LEAST_MINUTES, LEAST_MB = 10, 1000
"""Of any job: starting takes its time and its memory whatever the estimate."""
SNAKEMAKE_MB = 350
"""Of the Snakemake process that runs each job inside its allocation."""
TIME_MARGIN, MEMORY_MARGIN = 1.25, 1.2
DEVIATIONS = 3.0
"""Median errors that the time is given besides."""
TIME_GROWTH, MEMORY_GROWTH = 2.0, 1.5
"""Per further attempt: a job that was stopped for asking too little asks for more."""


def resources_of(job: Planned, attempt: int = 1) -> dict[str, Any]:
    """``gpu``, ``mem_mb``, ``runtime`` (minutes) and ``cpus_per_task``, by the names of Snakemake's resources.

    ``ValueError`` for attempts below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempt {attempt}: attempts count from 1")
    minutes = job.seconds / 60.0 * (TIME_MARGIN + DEVIATIONS * job.error)
    megabytes = job.host_memory / 1e6 * MEMORY_MARGIN
    return {
        "gpu": 1 if job.gpu_seconds else 0,
        "runtime": math.ceil(max(LEAST_MINUTES, minutes) * TIME_GROWTH ** (attempt - 1)),
        "mem_mb": math.ceil(max(LEAST_MB, megabytes + SNAKEMAKE_MB) * MEMORY_GROWTH ** (attempt - 1)),
        "cpus_per_task": job.cpus,
    }
