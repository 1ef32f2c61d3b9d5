"""Failed runs at the end of a run of Snakemake: said, and put back among what is to be made."""

import contextlib
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from peftbench.errors import UserError
from peftbench.failures import NOTES, noted, read_failure
from peftbench.graph import Job, Plan, StudyPlan
from peftbench.stages import TOLERANT
from peftbench.store import FAILED, RECORD, Record, read_record, unless_locked

LISTED = 20
"""Failed runs that are named one by one."""


def standing(plan: Plan, root: Path = Path()) -> list[Job]:
    """Planned jobs whose record says that they failed, as long as it has not been taken away (see ``settle``).

    A failed trial counts as made where a choice among trials has been made without it.
    """
    results = root / plan.results
    failed = [
        plan.jobs[digest]
        for digest in noted(results)
        if digest in plan.jobs and _failed(results, plan.jobs[digest])
    ]
    return [job for job in failed if not _tolerated(plan, results, job)]


def standing_files(plan: Plan, root: Path = Path()) -> list[str]:
    """Their records and the markers of the views that show them, as Snakemake calls them."""
    jobs = standing(plan, root)
    views = _views_of(plan, {job.digest for job in jobs})
    return [f"{plan.results}/{job.record}" for job in jobs] + [plan.marker(view) for view in views]


def settle(plan: Plan, root: Path = Path()) -> None:
    """Take away the records of failed runs, and the markers of the views that show them, so that both are due again.

    The notes stay, and so do the tables with what they say of these runs. What another process makes at this moment
    is left alone.
    """
    results = root / plan.results
    jobs = standing(plan, root)
    for job in jobs:
        with unless_locked(results / ".locks" / job.digest) as free:
            if free and _failed(results, job):
                (results / job.record).unlink(missing_ok=True)
    for job in sorted(jobs, key=lambda job: -len(Path(job.directory).parts)):
        with contextlib.suppress(OSError):
            (results / job.directory).rmdir()
    # Whoever took the records away: a view of ours that shows a failed run is not what it will be.
    unmade = {d for d in noted(results) if d in plan.jobs and not (results / plan.jobs[d].record).exists()}
    for view in _views_of(plan, unmade):
        (root / plan.marker(view)).unlink(missing_ok=True)


def report(plan: Plan, digests: Iterable[str], root: Path = Path()) -> list[str]:
    """One line for each of these jobs that failed by itself, and one for those that failed with it."""
    results = root / plan.results
    there = noted(results)
    notes: dict[str, Record] = {}
    for digest in digests:
        job = plan.jobs.get(digest)
        if job is None or digest not in there:
            continue
        made = (results / job.record).exists()
        if made and (not _failed(results, job) or _tolerated(plan, results, job)):
            continue
        note = read_failure(results, digest)
        if note is not None:
            notes[digest] = note
    own = [
        note for digest, note in notes.items() if not any(above in notes for above in note.inputs.values())
    ]
    return list(_lines(own, len(notes) - len(own), results))


def _lines(own: list[Record], with_them: int, results: Path) -> Iterator[str]:
    if not own:
        return
    jobs, them = ("job", "it") if len(own) == 1 else ("jobs", "them")
    yield f"{len(own)} {jobs} failed; snakemake will try again what failed, and nothing else:"
    for note in own[:LISTED]:
        reason = " ".join(str(note.facts[FAILED]).split())
        yield f"  {note.stage} {note.label} [{note.digest}]: {textwrap.shorten(reason, 400, placeholder=' ...')}"
    if len(own) > LISTED:
        yield f"  and {len(own) - LISTED} more, each with a note in {results / NOTES}"
    if with_them:
        yield f"  and {with_them} that {'is' if with_them == 1 else 'are'} made from {them}"


def _failed(results: Path, job: Job) -> bool:
    try:
        return FAILED in read_record(results / job.record).facts
    except UserError:
        return False


def _tolerated(plan: Plan, results: Path, job: Job) -> bool:
    """Whether a choice was made without it, and nothing failed for it."""
    users = [u for u in plan.jobs.values() if any(made.digest == job.digest for made in u.inputs.values())]
    chosen = any(
        user.stage in TOLERANT and (results / user.directory / RECORD).exists() and not _failed(results, user)
        for user in users
    )
    return chosen and not any(_failed(results, user) for user in users)


def _views_of(plan: Plan, digests: set[str]) -> list[Job]:
    """All views that show one of these jobs, in any study of the project."""
    if not digests:
        return []
    studies: list[StudyPlan] = [plan.study(name) for name in plan.settings.names("study")]
    studies += [plan.claims] if plan.claims else []
    return [
        view
        for study in studies
        if any(score.digest in digests for score in study.scores)
        for view in study.views
    ]
