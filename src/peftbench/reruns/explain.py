"""Why a run would run, or what it was made from."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench.blessings import CODE_AS_RUN, changes_between
from peftbench.errors import UserError, did_you_mean
from peftbench.failures import read_failure
from peftbench.graph import Job, Plan, StudyPlan
from peftbench.reruns.differences import Cause, Comparer, flatten, in_lines, title
from peftbench.reruns.records import Store, digest_in, started
from peftbench.stages import RULES
from peftbench.store import FAILED, Record
from peftbench.study import COORDINATES, Run

DETAILED = ("train", "choose", "predict", "judge", "expose")
"""Stages whose settings are shown with a result that was made from theirs."""


class Explainer:
    """Answers for one plan and one results folder."""

    def __init__(self, plan: Plan, results: Path) -> None:
        self.plan = plan
        self.results = results
        self.store = Store(results)
        self.comparer = Comparer(self.store)

    def target(self, text: str, filters: list[str]) -> dict[str, Any]:
        """What there is to say about a digest, a path or a study; ``UserError`` where it is none of them."""
        digest = _digest_of(text)
        if digest is None:
            studies = [*self.plan.settings.names("study"), *(["claims"] if self.plan.claims else [])]
            name = text if text in studies else Path(text).name.partition(".")[0]
            if name not in studies:
                raise UserError(
                    f"{text!r} is no digest, no path of a result, and no study{did_you_mean(text, studies)}"
                )
            return self.study(name, filters)
        if filters:
            raise UserError(f"{filters[0]!r}: only a study can be narrowed down")
        if digest in self.plan.jobs:
            return self.job(self.plan.jobs[digest])
        record = self.store.record(digest) or self._marker(digest)
        if record is None:
            raise UserError(
                f"digest {digest} is neither planned nor in {self.results}: see 'peftbench runs' for what there is"
                + "".join(f"; {line}" for line in self.store.broken)
            )
        return self.unplanned(record)

    def job(self, job: Job) -> dict[str, Any]:
        """A planned job: what it was made from, or why it would run."""
        record = self.record_of(job)
        answer = self._head(job.stage, job.label, job.digest, record) | {"planned": True}
        chain = [*_upstream(job), job]
        answer["blessed"] = [line for other in chain for line in self._blessed(other, self.record_of(other))]
        if record is not None:
            return answer | self._made(record, job)
        nearest = self.nearest(job)
        answer["nearest"] = _brief(nearest) if nearest else None
        answer["same_label"] = nearest is not None and nearest.label == job.label
        answer["because"] = self._because(nearest, job) if nearest else []
        answer["inputs"] = [self._upstream(other) for other in _upstream(job)]
        return answer

    def unplanned(self, record: Record) -> dict[str, Any]:
        """A stored result that no present study asks for, and the planned job that is nearest to it."""
        answer = self._head(record.stage, record.label, record.digest, record) | {"planned": False}
        jobs = [job for job in self.plan.jobs.values() if job.stage == record.stage]
        same = [job for job in jobs if job.label == record.label]
        near = min(same or jobs, key=lambda job: self.comparer.distance(record, job), default=None)
        answer["nearest"] = {"digest": near.digest, "label": near.label} if near else None
        answer["because"] = self._because(record, near) if near else []
        return answer | self._made(record, None)

    def study(self, name: str, filters: list[str]) -> dict[str, Any]:
        """The cells of a study; a single one in full."""
        study = self._study(name)
        cells = list(_narrowed(study, filters))
        if not cells and filters:
            raise UserError(f"study {name}: no run has {' '.join(filters)}: see 'peftbench runs {name}'")
        scores = {score.digest: score for _, score in cells}
        if len(scores) == 1 and filters:
            return self.job(next(iter(scores.values())))
        jobs: dict[str, Job] = {}
        targets = [score for _, score in cells] + (study.data if not filters else [])
        for job in targets:
            jobs |= {other.digest: other for other in [*_upstream(job), job]}
        missing = [job for job in jobs.values() if self.record_of(job) is None]
        gone = {job.digest for job in missing}
        because, unmade = self._because_of_all(missing)
        views = [self._view(view) for view in study.views] if not filters else []
        return {
            "study": name,
            "runs": len(scores),
            "there": sum(digest not in gone for digest in scores),
            "jobs": _counts(list(jobs.values())),
            "would_run": _counts(missing),
            "because": because,
            "never_made": unmade,
            "failed": self._failures(missing),
            "views": views,
            "broken": self.store.broken,
        }

    def _because_of_all(self, missing: list[Job]) -> tuple[list[dict[str, Any]], list[str]]:
        """Why any of these jobs would run, and those of which nothing like it was ever made."""
        causes: dict[str, Cause] = {}
        unmade = []
        for job in missing:
            nearest = self.nearest(job)
            if nearest is None or nearest.label != job.label:
                unmade.append(title(job.stage, job.label))
            else:
                causes |= {repr(cause): cause for cause in self.comparer.causes(nearest, job)}
        return self._lines(list(causes.values())), unmade

    def _failures(self, missing: list[Job]) -> list[str]:
        """Those of some jobs that failed when last tried, and not only with what they are made from."""
        notes = {job.digest: note for job in missing if (note := read_failure(self.results, job.digest))}
        own = [note for note in notes.values() if not any(above in notes for above in note.inputs.values())]
        return [f"{title(note.stage, note.label)}: {_reason(note)}" for note in own]

    def record_of(self, job: Job) -> Record | None:
        """The record of a planned job, views by their markers."""
        return self.store.record(job.digest) or (self._marker(job.digest) if _is_view(job) else None)

    def nearest(self, job: Job) -> Record | None:
        """The stored record that is nearest to a planned job."""
        if not _is_view(job):
            return self.comparer.nearest(job)
        for path in (self.results / job.directory).glob(f"{job.label}-{'[0-9a-f]' * 16}.json"):
            record = self._marker(path.stem.rpartition("-")[2])
            if record is not None:
                return record
        return None

    def _study(self, name: str) -> StudyPlan:
        claims = self.plan.claims
        if name == "claims" and claims is not None:
            return claims
        return self.plan.study(name)

    def _view(self, view: Job) -> dict[str, Any]:
        there = self._marker(view.digest) is not None
        nearest = None if there else self.nearest(view)
        because = self._because(nearest, view) if nearest else []
        return {"stage": view.stage, "there": there, "because": because}

    def _marker(self, digest: str) -> Record | None:
        from peftbench.store import read_record

        for path in self.results.glob(f"*/.made/*-{digest}.json"):
            try:
                return read_record(path)
            except UserError as error:
                self.store.broken.append(f"{error}: skipped")
        return None

    def _head(self, stage: str, label: str, digest: str, record: Record | None) -> dict[str, Any]:
        folder = self.store.places.get(digest)
        return {
            "stage": stage,
            "rule": RULES[stage],
            "label": label,
            "digest": digest,
            "there": record is not None,
            "failed": record.facts.get(FAILED) if record else _reason(read_failure(self.results, digest)),
            "folder": str(folder) if folder and record else None,
            "broken": self.store.broken,
        }

    def _made(self, record: Record, job: Job | None) -> dict[str, Any]:
        cost = record.provenance
        inputs = [self._stored_input(name, digest) for name, digest in sorted(record.inputs.items())]
        above = [self._upstream(other) for other in _upstream(job)] if job else []
        settings = {title(record.stage, record.label): flatten(record.spec)}
        for other in _upstream(job) if job else []:
            if other.stage in DETAILED and record.stage in (*DETAILED, "score"):
                settings[title(other.stage, other.label)] = flatten(json.loads(other.spec))
        keys = (
            "started",
            "host",
            "device",
            "cpu",
            "wall_seconds",
            "cpu_seconds",
            "gpu_seconds",
            "peak_memory",
            "peak_gpu_memory",
        )
        return {
            "made": {key: cost.get(key) for key in keys},
            "settings": settings,
            "code": record.code,
            CODE_AS_RUN: cost.get(CODE_AS_RUN),
            "inputs": inputs,
            "from": above,
        }

    def _stored_input(self, name: str, digest: str) -> dict[str, Any]:
        record = self.store.record(digest)
        return {
            "name": name,
            "digest": digest,
            "label": record.label if record else None,
            "there": record is not None,
        }

    def _upstream(self, job: Job) -> dict[str, Any]:
        record = self.store.record(job.digest)
        return {"stage": job.stage, "label": job.label, "digest": job.digest} | (
            _brief(record) if record else {"there": False}
        )

    def _because(self, record: Record, job: Job) -> list[dict[str, Any]]:
        return self._lines(self.comparer.causes(record, job))

    def _lines(self, causes: list[Cause]) -> list[dict[str, Any]]:
        return [{"text": text, "jobs": jobs} for text, jobs in in_lines(causes, self._files(causes))]

    def _files(self, causes: list[Cause]) -> dict[str, str]:
        """Module -> its file, relative to the project, as far as it is there."""
        found = {}
        for name in {cause.name for cause in causes if cause.kind == "code"}:
            places = (
                f"workflow/scripts/{name}",
                f"src/peftbench/{name}",
                f"src/peftbench/{name.replace('.', '/')}.py",
                f"src/peftbench/{name.replace('.', '/')}/__init__.py",
            )
            root = self.plan.settings.root
            there = (place for place in places if "." in name and (root / place).is_file())
            found[name] = next(there, "")
        return {name: place for name, place in found.items() if place}

    def _blessed(self, job: Job, record: Record | None) -> list[dict[str, Any]]:
        """The blessings by which the code on disk counts as the code of the job, or did when it ran."""
        blessings, where = self.plan.blessings, title(job.stage, job.label)
        code = json.loads(job.code)
        said: list[dict[str, Any]] = [
            {"job": where, "date": entry.date, "modules": [change.module for change in entry.changes]}
            for entry in blessings.between(job.stage, self.plan.code_as_is(job), code)
        ]
        ran = record.provenance.get(CODE_AS_RUN) if record else None
        if ran and blessings.canonical(job.stage, ran) != blessings.canonical(job.stage, code):
            modules = [change.module for change in changes_between(code, ran)]
            said.append({"job": where, "date": None, "modules": modules})
        return said


def _digest_of(text: str) -> str | None:
    """The digest that a text is, or that the innermost folder or file of a path ends in."""
    if re.fullmatch(r"[0-9a-f]{16}", text):
        return text
    for part in reversed(Path(text).parts):
        found = digest_in(part.removesuffix(".json"))
        if found:
            return found
    return None


def _reason(note: Record | None) -> str | None:
    """Why a job has no result: its note of failure with the time."""
    return f"{note.facts[FAILED]} ({started(note) or '?'})" if note else None


def _is_view(job: Job) -> bool:
    return job.directory.endswith("/.made")


def _upstream(job: Job) -> list[Job]:
    """All jobs that a job is made from, each once, upstream first; not itself."""
    found: dict[str, Job] = {}

    def visit(other: Job) -> None:
        for inner in other.inputs.values():
            if inner.digest not in found:
                visit(inner)
                found[inner.digest] = inner

    visit(job)
    return list(found.values())


def _counts(jobs: list[Job]) -> dict[str, int]:
    found: dict[str, int] = {}
    for job in jobs:
        found[job.stage] = found.get(job.stage, 0) + 1
    return {stage: found[stage] for stage in RULES if stage in found}


def _brief(record: Record) -> dict[str, Any]:
    return {
        "digest": record.digest,
        "label": record.label,
        "there": True,
        "started": started(record),
        "host": record.provenance.get("host"),
        "wall_seconds": record.provenance.get("wall_seconds"),
    }


def _narrowed(study: StudyPlan, filters: list[str]) -> Iterator[tuple[Run, Job]]:
    """The cells that fit all filters ``axis=value[,value]``; ``UserError`` for an axis that there is not."""
    wanted: dict[str, list[str]] = {}
    for text in filters:
        axis, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r}: a filter is axis=value, such as method=lora")
        wanted[axis] = value.split(",")
    axes = {*COORDINATES, *(axis for run in study.runs for axis in run.axes)}
    for axis in wanted:
        if axis not in axes:
            raise UserError(f"study {study.name} has no axis {axis!r}{did_you_mean(axis, axes)}")
    for run, score in zip(study.runs, study.scores, strict=False):
        point = {axis: getattr(run, axis) for axis in COORDINATES} | run.axes
        if all(_said(point.get(axis)) in values for axis, values in wanted.items()):
            yield run, score


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
