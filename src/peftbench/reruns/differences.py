"""What differs between a stored result and a planned job, followed through their inputs to where it begins."""

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from peftbench.graph import Job
from peftbench.reruns.records import Store, started
from peftbench.store import Record

TITLES = {
    "retrieve": "retrieval of",
    "prepare": "data set",
    "subset": "draw of",
    "build": "model",
    "expose": "exposed model",
    "train": "training of",
    "choose": "choice for",
    "predict": "answers of",
    "judge": "judgements on",
    "score": "scores of",
    "tabulate": "table",
    "plot": "figure",
    "report": "page",
    "describe": "table",
    "claims": "table",
}
"""Stage -> words before a job's label."""
LISTED_SETTINGS = 6
"""More differences than this below one top-level key are counted, not listed."""
LISTED_MODULES = 3
"""More modules of one job than this stand in one line, without their files."""


def title(stage: str, label: str) -> str:
    """A job in words."""
    return f"{TITLES.get(stage, stage)} {label}"


class Cause(Struct, frozen=True, kw_only=True):
    """One difference, where it begins: never "an input changed" where the input's own change is known."""

    kind: str
    """setting, code, package, input."""
    where: str
    """The job whose own difference it is, in words."""
    stage: str
    name: str
    """Dotted path of the setting, module, package, name of the input."""
    old: Any = None
    new: Any = None

    @property
    def verb(self) -> str:
        """What happened to a module."""
        return "changed" if self.old and self.new else "is new" if self.new else "is no longer used"

    @property
    def text(self) -> str:
        """The difference in words, without the job."""
        if self.kind == "code":
            return f"code: {self.name} {self.verb}"
        if self.kind == "input":
            if self.new is None:
                return f"input {self.name} is no longer used"
            return f"input {self.name} is {self.new}" + (
                f", was {self.old}" if self.old else ", was not there"
            )
        prefix = "package " if self.kind == "package" else ""
        return f"{prefix}{self.name}: {shown(self.old)} -> {shown(self.new)}"


def shown(value: Any) -> str:
    """A setting's value, short; an absent one says so."""
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Plain data by dotted paths: ``settings.rank``, ``mix[0].dataset``."""
    found: dict[str, Any] = {}
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            found |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for place, inner in enumerate(value):
            found |= flatten(inner, f"{prefix}[{place}]")
    else:
        found[prefix] = value
    return found


class Comparer:
    """Compares jobs with what a store holds; each pair once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._own: dict[tuple[str, str], list[Cause]] = {}
        self._flat: dict[str, dict[str, Any]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def nearest(self, job: Job) -> Record | None:
        """The stored record of the job's stage that differs least from it; of its own label, if there is one.

        Of equally near ones the latest. Never the job's own record.
        """
        records = [r for r in self.store.of_stage(job.stage) if r.digest != job.digest]
        same = [record for record in records if record.label == job.label]
        ranked = sorted(same or records, key=started, reverse=True)
        for record in sorted(ranked, key=lambda record: self.distance(record, job)):
            if self.store.record(record.digest) is not None:
                return record
        return None

    def distance(self, record: Record, job: Job) -> int:
        """How many differences there are, those of inputs included."""
        key = record.digest, job.digest
        if key not in self._counts:
            count = len(self.own(record, job))
            for _, was, now in self._inputs(record, job):
                older = self.store.all.get(was)
                count += max(1, self.distance(older, now)) if older and now else 1
            self._counts[key] = count
        return self._counts[key]

    def causes(self, record: Record, job: Job) -> list[Cause]:
        """All differences, each where it begins, upstream first; an input that several use counts once."""
        found: dict[tuple[str, str], list[Cause]] = {}
        self._collect(record, job, found)
        return [cause for causes in found.values() for cause in causes]

    def _collect(self, record: Record, job: Job, found: dict[tuple[str, str], list[Cause]]) -> None:
        key = record.digest, job.digest
        if key in found:
            return
        unknown: list[Cause] = []
        for name, was, now in self._inputs(record, job):
            if now is not None and now.directory.endswith("/.made"):
                continue  # a view, whose own differences are its own affair
            older = self.store.record(was) if was else None
            if older is not None and now is not None and older.stage == now.stage:
                self._collect(older, now, found)
            else:
                unknown.append(
                    Cause(
                        kind="input",
                        where=title(job.stage, job.label),
                        stage=job.stage,
                        name=name,
                        old=title(older.stage, older.label) if older else was or None,
                        new=title(now.stage, now.label) if now else None,
                    )
                )
        found[key] = self.own(record, job) + unknown

    def _inputs(self, record: Record, job: Job) -> Iterator[tuple[str, str, Job | None]]:
        """Inputs that differ: name, old digest (or nothing), present job (or None)."""
        for name in sorted(record.inputs.keys() | job.inputs.keys()):
            was, now = record.inputs.get(name, ""), job.inputs.get(name)
            if now is None or was != now.digest:
                yield name, was, now

    def own(self, record: Record, job: Job) -> list[Cause]:
        """Differences in settings, code and packages; not those of the inputs."""
        key = record.digest, job.digest
        if key not in self._own:
            where = title(job.stage, job.label)
            self._own[key] = [
                Cause(kind=kind, where=where, stage=job.stage, name=name, old=old, new=new)
                for kind, before, now in self._parts(record, job)
                for name, old, new in _pairs(before, now)
            ]
        return self._own[key]

    def _parts(self, record: Record, job: Job) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        code = json.loads(job.code)
        if job.digest not in self._flat:
            self._flat[job.digest] = flatten(json.loads(job.spec))
        if record.digest not in self._flat:
            self._flat[record.digest] = flatten(record.spec)
        yield "setting", self._flat[record.digest], self._flat[job.digest]
        yield "code", record.code.get("modules", {}), code["modules"]
        yield "package", record.code.get("packages", {}), code["packages"]


def _pairs(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    if before == now:
        return []
    names = [*now, *(name for name in before if name not in now)]
    return [
        (name, before.get(name), now.get(name))
        for name in names
        if before.get(name) != now.get(name)
        or type(before.get(name)) is not type(now.get(name))
        or (name in before) != (name in now)
    ]


def in_lines(causes: list[Cause], files: dict[str, str] | None = None) -> list[tuple[str, list[str]]]:
    """Causes as (text, jobs that have it); equal ones of several jobs together, many of one kind in one line.

    ``files``: module -> its file.
    """
    grouped: dict[str, list[str]] = {}
    by_job: dict[str, list[Cause]] = {}
    for cause in causes:
        by_job.setdefault(cause.where, []).append(cause)
    for where, own in by_job.items():
        for text in _lines(own, files or {}):
            grouped.setdefault(text, []).append(where)
    return list(grouped.items())


def _lines(causes: list[Cause], files: dict[str, str]) -> Iterator[str]:
    """The differences of one job."""
    settings = [cause for cause in causes if cause.kind == "setting"]
    heads: dict[str, int] = {}
    for cause in settings:
        heads[_head(cause.name)] = heads.get(_head(cause.name), 0) + 1
    for cause in settings:
        if heads[_head(cause.name)] <= LISTED_SETTINGS:
            yield cause.text
    for head, count in heads.items():
        if count > LISTED_SETTINGS:
            yield f"{head}: {count} values differ"
    code = [cause for cause in causes if cause.kind == "code"]
    if len(code) <= LISTED_MODULES:
        for cause in code:
            yield cause.text + (f" ({files[cause.name]})" if cause.name in files else "")
    else:
        verbs: dict[str, list[str]] = {}
        for cause in code:
            verbs.setdefault(cause.verb, []).append(cause.name)
        yield "code: " + "; ".join(f"{verb}: {', '.join(names)}" for verb, names in verbs.items())
    yield from (cause.text for cause in causes if cause.kind not in ("setting", "code"))


def _head(name: str) -> str:
    return name.partition(".")[0].partition("[")[0]
