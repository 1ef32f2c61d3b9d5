"""What a Snakemake tells of itself at its start."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench.failures import noted, read_failure
from peftbench.graph import Job, Plan
from peftbench.lease import myself
from peftbench.running import Planned, Run, announced_run


def announce(
    plan: Plan, logs: Mapping[str, str], config: Mapping[str, Any]
) -> contextlib.AbstractContextManager[None]:
    """For as long as the context lasts, tell which jobs run (digest -> log), on what configuration."""
    results = Path(plan.results)
    before = {digest: read_failure(results, digest) for digest in noted(results) & logs.keys()}
    run = Run(
        who=myself(),
        folder=str(Path.cwd()),
        root=str(plan.settings.root.resolve()),
        config=dict(config),
        jobs={digest: planned(plan, plan.jobs[digest], log) for digest, log in logs.items()},
        failed_before={
            digest: str(note.provenance.get("started")) for digest, note in before.items() if note
        },
        started=time.time(),
    )
    return announced_run(results, run)


def planned(plan: Plan, job: Job, log: str = "") -> Planned:
    """A job of the plan, with its log."""
    view = job.directory.endswith("/.made")
    record = plan.marker(job) if view else f"{plan.results}/{job.record}"
    return Planned(stage=job.stage, label=job.label, record=record, log=log)
