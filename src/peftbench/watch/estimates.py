"""What the jobs of a run will take, by the planner."""

from pathlib import Path

from peftbench.config import Settings
from peftbench.errors import UserError
from peftbench.graph import Plan
from peftbench.planning.plan_cli import make
from peftbench.planning.wanted import Wanted, wanted
from peftbench.running import Run
from peftbench.watch.snapshot import Cost


def estimates(run: Run) -> dict[str, Cost]:
    """Digest -> cost; empty where the planner has none (its hardware is unknown, the configuration has changed)."""
    try:
        plan = Plan(Settings(run.config, Path(run.root)))
        studies = [plan.study(name) for name in plan.settings.names("study")]
        asked = wanted([*studies, *([plan.claims] if plan.claims else [])])
        jobs = {digest: job for digest, job in asked.jobs.items() if digest in run.jobs}
        after = {digest: [above for above in asked.after[digest] if above in jobs] for digest in jobs}
        kept = Wanted(jobs=jobs, after=after, study=asked.study)
        result = make(plan, kept, set(jobs), Path(run.folder), "this run")
    except UserError:
        return {}
    return {job.digest: Cost(job.seconds, job.gpu_seconds) for job in result.jobs}
