"""Which jobs studies ask for, and which of them would run."""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from peftbench.graph import VIEW_FILES, Job, Plan, StudyPlan
from peftbench.planning.subject import VIEW_STAGES
from peftbench.reruns.failed import standing_files


class Wanted(Struct, frozen=True, kw_only=True):
    """The jobs of some studies, and what waits for what."""

    jobs: dict[str, Job]
    after: dict[str, list[str]]
    study: dict[str, str]
    """Digest -> the first study that asks for it."""


def wanted(studies: Iterable[StudyPlan]) -> Wanted:
    """All jobs of some studies, upstream ones included."""
    jobs: dict[str, Job] = {}
    after: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for study in studies:
        for view in study.views:
            before = [job.digest for job in view.inputs.values()]
            if view.stage in ("tabulate", "claims", "describe"):
                before += [job.digest for job in (*study.scores, *study.data)]
            jobs[view.digest], after[view.digest] = view, list(dict.fromkeys(before))
            first.setdefault(view.digest, study.name)
        waiting = [*study.scores, *study.data]
        while waiting:
            job = waiting.pop()
            if job.digest in jobs:
                continue
            jobs[job.digest], first[job.digest] = job, study.name
            after[job.digest] = [one.digest for one in job.inputs.values()]
            waiting.extend(job.inputs.values())
    return Wanted(jobs=jobs, after=after, study=first)


def to_run(plan: Plan, asked: Wanted, root: Path) -> set[str]:
    """Digests of the jobs that Snakemake would run.

    Those whose outputs are missing and asked for, those that these need whose outputs are missing too, and what was
    made from what is missing and made anew.
    """
    results = root / plan.results
    run: set[str] = set()
    retried = set(standing_files(plan, root))

    def missing(job: Job) -> bool:
        if job.stage not in VIEW_STAGES:
            return f"{plan.results}/{job.record}" in retried or not (results / job.record).exists()
        names = [name.format(job.label) for name in VIEW_FILES[job.stage]]
        marker = plan.marker(job)
        there = marker not in retried and (root / marker).exists()
        return not (there and all((results / name).exists() for name in names))

    followers: dict[str, list[str]] = {}
    for digest, befores in asked.after.items():
        for before in befores:
            followers.setdefault(before, []).append(digest)
    waiting = [digest for digest, job in asked.jobs.items() if job.stage in VIEW_STAGES and missing(job)]
    while waiting:
        digest = waiting.pop()
        if digest in run:
            continue
        run.add(digest)
        waiting.extend(
            before for before in asked.after[digest] if before not in run and missing(asked.jobs[before])
        )
        # What is there already is made again where something that it was made from is missing and made anew.
        if missing(asked.jobs[digest]):
            waiting.extend(after for after in followers.get(digest, ()) if after not in run)
    return run
