"""Declare present code equal to older code, after running jobs again with it and comparing all that they leave.

What is declared is narrow (``peftbench.blessings``): this code of this stage, as a whole, equals that older one.
So each set of modules that the stage's jobs have (each method, architecture, template) needs a run of its own.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.blessings import FILE, HEADER, Blessing, Change, Proof, as_text, changes_between
from peftbench.canonical import canonical_json, digest
from peftbench.errors import UserError, did_you_mean
from peftbench.fingerprint import Code
from peftbench.graph import Job, Plan
from peftbench.reruns.equal import GPU_TOLERANCE, check_sums, differences
from peftbench.reruns.project import add_options, results_of, whole_plan
from peftbench.reruns.records import Store, started, wall_seconds
from peftbench.spec import SPECS
from peftbench.stages import RULES
from peftbench.store import FAILED, RECORD, Record, atomic_text, locked, read_record


class Candidate(Struct, frozen=True, kw_only=True):
    """A stored result that differs from a planned job in nothing but the code."""

    job: Job
    record: Record
    place: Path


class Group(Struct, frozen=True, kw_only=True):
    """All candidates of one pair of codes: one thing to prove."""

    stage: str
    old: Code
    new: Code
    candidates: list[Candidate]
    """The cheapest first."""
    set_aside: int
    """Results of the new code whose place nothing will look for after the blessing."""

    @property
    def changes(self) -> list[Change]:
        """What differs between the codes."""
        return changes_between(self.old, self.new)


def add_command(commands: Any) -> None:
    """Add ``bless`` to the commands of ``peftbench``."""
    bless = commands.add_parser(
        "bless", help="prove that changed code changes no result, and say so to the plan"
    )
    add_options(bless)
    bless.add_argument(
        "stages",
        nargs="+",
        metavar="STAGE[:MODULE]",
        help="stages whose code changed; with modules: refuse if others changed too",
    )
    bless.add_argument(
        "--runs",
        type=int,
        default=2,
        metavar="N",
        help="runs to make again (default 2), at least one for each set of modules",
    )
    bless.add_argument("--against", metavar="DIGEST", help="a stored result of the older code that is meant")
    bless.add_argument(
        "--tolerance",
        type=float,
        default=GPU_TOLERANCE,
        metavar="X",
        help=f"for results of a GPU (default {GPU_TOLERANCE:g}); those of a CPU must be bit-equal",
    )
    bless.add_argument("--dry-run", action="store_true", help="say what would be run again")
    bless.set_defaults(run=_bless)


def _bless(arguments: argparse.Namespace) -> int:
    if arguments.runs < 1:
        raise UserError(f"--runs {arguments.runs}: nothing is proven by no run")
    if not 0 <= arguments.tolerance <= 0.1:
        raise UserError(f"--tolerance {arguments.tolerance:g}: give a share between 0 and 0.1")
    wanted = _wanted(arguments.stages)
    for stage in (stage for stage in SPECS if stage in wanted):
        # planned anew for every stage: a blessing upstream gives the inputs their old digests back
        plan = whole_plan(arguments.root, arguments.configfile)
        results = results_of(arguments, plan)
        _bless_stage(plan, results, stage, wanted[stage], arguments)
    return 0


def _wanted(words: list[str]) -> dict[str, set[str]]:
    """Stage -> modules that may have changed; none: all."""
    wanted: dict[str, set[str]] = {}
    for word in words:
        stage, _, module = word.partition(":")
        if stage not in SPECS:
            why = "its results are cheap to make again" if stage in RULES else "there is no such stage"
            raise UserError(f"{stage!r} cannot be blessed: {why}{did_you_mean(stage, SPECS)}")
        modules = wanted.setdefault(stage, set())
        if module:
            modules.add(module.removeprefix("peftbench."))
    return wanted


def _bless_stage(
    plan: Plan, results: Path, stage: str, modules: set[str], arguments: argparse.Namespace
) -> None:
    store = Store(results)
    groups = find_groups(plan, store, stage, arguments.against)
    for line in store.broken:
        print(f"warning: {line}", file=sys.stderr)
    if not groups:
        raise UserError(
            f"{stage}: no stored result in {results} differs from a planned one in its code alone: nothing to bless "
            f"('peftbench explain' says what differs)"
        )
    _check_modules(stage, groups, modules)
    chosen = choose(groups, arguments.runs)
    for group in groups:
        changed = ", ".join(change.module for change in group.changes)
        print(f"{stage}: {len(group.candidates)} stored results differ in code alone: {changed}")
        if group.set_aside:
            print(
                f"  {group.set_aside} results of the new code alone will not be found under the older code's name"
            )
        for candidate in chosen[id(group)]:
            print(f"  to be made again: {candidate.record.label} ({wall_seconds(candidate.record):.1f} s)")
    if arguments.dry_run:
        return
    proofs = []
    for group in groups:
        how = [_prove(plan, results, candidate, arguments.tolerance) for candidate in chosen[id(group)]]
        proofs.append((group, max(how, key=len)))
    _write(plan.settings.root, stage, proofs, chosen)


def find_groups(plan: Plan, store: Store, stage: str, against: str | None = None) -> list[Group]:
    """What there is to prove for a stage: one group per present code, with one older code each.

    Of several older codes the one with the fewest other modules is meant, and of those the one with the latest
    result; or that of the result ``against``.
    """
    stored: dict[str, list[Record]] = {}
    for record in store.of_stage(stage):
        if FAILED not in record.facts:
            stored.setdefault(_but_code(record.spec, record.inputs), []).append(record)
    meant = None
    if against:
        meant = store.record(against)
        if meant is None or meant.stage != stage:
            raise UserError(f"--against {against}: no stored result of stage {stage} has this digest")
    found: dict[str, dict[str, list[Candidate]]] = {}
    jobs = [job for job in plan.jobs.values() if job.stage == stage]
    for job in jobs:
        code = json.loads(job.code)
        inputs = {name: other.digest for name, other in job.inputs.items()}
        for record in stored.get(_but_code(json.loads(job.spec), inputs), []):
            if record.code.get("packages") != code["packages"]:
                continue
            if plan.blessings.canonical(stage, record.code) == code:
                continue  # equal already
            candidate = Candidate(job=job, record=record, place=store.places[record.digest])
            older = found.setdefault(canonical_json(plan.code_as_is(job)), {})
            older.setdefault(canonical_json(record.code), []).append(candidate)
    groups = []
    for new, older in found.items():
        sharing = [job for job in jobs if canonical_json(plan.code_as_is(job)) == new]
        if all(job.digest in store.places for job in sharing):
            continue  # nothing of this code is missing
        wanted = {
            text
            for text, some in older.items()
            if meant and meant.code["modules"] == some[0].record.code["modules"]
        }
        if meant and not wanted:
            continue
        old = min(sorted(wanted or older), key=lambda text: _farness(text, new, older[text]))
        covered = {candidate.job.digest for candidate in older[old]}
        aside = sum(job.digest in store.places and job.digest not in covered for job in sharing)
        groups.append(
            Group(
                stage=stage,
                old=json.loads(old),
                new=json.loads(new),
                candidates=sorted(older[old], key=lambda c: wall_seconds(c.record)),
                set_aside=aside,
            )
        )
    return groups


def _farness(old: str, new: str, candidates: list[Candidate]) -> tuple[int, float]:
    """How far an older code is: by modules, then by time."""
    latest = max(started(candidate.record) for candidate in candidates)
    try:
        seconds = datetime.datetime.fromisoformat(latest).timestamp()
    except ValueError:
        seconds = 0.0
    return len(changes_between(json.loads(old), json.loads(new))), -seconds


def _but_code(spec: dict[str, Any], inputs: dict[str, str]) -> str:
    return canonical_json([spec, inputs])


def _check_modules(stage: str, groups: list[Group], modules: set[str]) -> None:
    if not modules:
        return
    changed = {change.module for group in groups for change in group.changes}
    for module in sorted(modules - changed):
        raise UserError(f"{stage}:{module}: this module did not change{did_you_mean(module, changed)}")
    others = sorted(changed - modules)
    if others:
        raise UserError(
            f"{stage}: changed besides: {', '.join(others)}: name them too, or take them back first"
        )


def choose(groups: list[Group], runs: int) -> dict[int, list[Candidate]]:
    """The cheapest candidate of each group, and further ones by their cost until there are ``runs``."""
    chosen = {id(group): [group.candidates[0]] for group in groups}
    rest = sorted(
        (
            (wall_seconds(c.record), place, number)
            for place, group in enumerate(groups)
            for number, c in enumerate(group.candidates[1:], start=1)
        ),
    )
    for _, place, number in itertools.islice(rest, max(0, runs - len(groups))):
        chosen[id(groups[place])].append(groups[place].candidates[number])
    return chosen


def _prove(plan: Plan, results: Path, candidate: Candidate, tolerance: float) -> str:
    """Make a stored result again and compare; how it was compared. ``UserError`` where they differ."""
    job, record = candidate.job, candidate.record
    what = f"{job.stage} {record.label} ({record.digest})"
    if job.stage == "judge" and record.spec["kind"] == "endpoint":
        raise UserError(f"{what}: an endpoint answers differently each time: judgements cannot be blessed")
    check_sums(record, candidate.place)
    lock = results / ".locks" / record.digest  # gc leaves alone what is locked
    with (
        locked(lock, lambda who: print(f"waiting for {who}", file=sys.stderr)),
        _rerun(plan, results, candidate) as folder,
    ):
        again = read_record(folder / RECORD)
        if FAILED in again.facts:
            raise UserError(f"not blessed: {what} fails with the present code: {again.facts[FAILED]}")
        then, now = record.provenance.get("device"), again.provenance["device"]
        if (then == "cpu") != (now == "cpu"):
            raise UserError(f"{what} was made on {then}, not on {now}: run bless on such a machine")
        allowed = 0.0 if now == "cpu" else tolerance
        found = next(differences(record, candidate.place, again, folder, allowed), None)
        if found:
            hint = "" if now != "cpu" else "; if it was made on other hardware, run bless there"
            raise UserError(f"not blessed: {what} is another result with the present code: {found}{hint}")
        print(f"{what}: equal", flush=True)
    return f"within {allowed:g} on {now}" if allowed else "bit-equal"


@contextlib.contextmanager
def _rerun(plan: Plan, results: Path, candidate: Candidate) -> Iterator[Path]:
    """Run a job by its own script in a temporary results folder; the folder of its result.

    Inputs come from the store, images too. Features of vision towers are computed anew, since a cache would
    hide what the present code makes of them.
    """
    job = candidate.job
    as_is = plan.code_as_is(job)
    ticket = json.loads(job.ticket) | {"code": as_is}
    made = digest({key: ticket[key] for key in ("stage", "spec", "code", "inputs")})
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bless-", dir=results, ignore_cleanup_errors=True) as name:
        place = Path(name).resolve()
        if job.stage != "prepare" and (results / "images").is_dir():
            (place / "images").symlink_to((results / "images").resolve())
        inputs = []
        for title, other in sorted(job.inputs.items()):
            path = results / other.record
            if not path.exists():
                raise UserError(
                    f"{job.stage} {job.label}: its input {title} is not there: {path}: run snakemake first"
                )
            inputs.append(str(path.resolve()))
        execution = json.loads(plan.execution(job)) | {"results": str(place), "worker": "none"}
        if job.cache_vision:
            execution["cache_dir"] = str(place / "cache")
        folder = place / "again" / f"result-{made}"
        script = plan.settings.root / "workflow/scripts" / f"{RULES[job.stage]}.py"
        words = [sys.executable, str(script), "--ticket", "-", "--output", str(folder / RECORD)]
        words += ["--execution", json.dumps(execution), "--log", str(place / "log.txt")]
        if inputs:
            words += ["--inputs", *inputs]
        print(f"making again {job.stage} {job.label} ...", flush=True)
        done = subprocess.run(
            words,
            input=canonical_json(ticket),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PEFTBENCH_WORKER": "none"},
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            said = next((line for line in lines if line.startswith("error: ")), lines[-1])
            kept = (
                shutil.copy(place / "log.txt", results / "bless.log") if (place / "log.txt").exists() else ""
            )
            raise UserError(
                f"not blessed: {job.stage} {job.label} does not run with the present code: "
                f"{said.removeprefix('error: ')}" + (f" (log: {kept})" if kept else "")
            )
        yield folder


def _write(
    root: Path, stage: str, proven: list[tuple[Group, str]], chosen: dict[int, list[Candidate]]
) -> None:
    """Add what was proven to the file; entries with the same changes are one."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entries: dict[str, Blessing] = {}
    for group, compared in proven:
        runs = chosen[id(group)]
        proof = Proof(
            old=digest(group.old),
            new=digest(group.new),
            runs=[candidate.record.digest for candidate in runs],
            labels=[candidate.record.label for candidate in runs],
            packages=group.new["packages"],
            compared=compared,
        )
        key = canonical_json([msgspec.to_builtins(change) for change in group.changes])
        if key not in entries:
            entries[key] = Blessing(stage=stage, date=now, changes=group.changes, proofs=[])
        entries[key].proofs.append(proof)
    path = root / FILE
    with locked(root / f".{FILE}.lock", lambda who: print(f"waiting for {who}", file=sys.stderr)):
        before = path.read_text(encoding="utf-8") if path.exists() else HEADER
        before += "" if before.endswith("\n") else "\n"
        atomic_text(path, before + as_text(list(entries.values())))
    results = sum(len(group.candidates) for group, _ in proven)
    print(f"blessed: {results} stored results of stage {stage} count for the present code: commit {path}")
