"""The ``peftbench`` command: what the workflow knows, without running it."""

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from peftbench.addresses import without_secrets
from peftbench.config import Settings
from peftbench.errors import UserError, did_you_mean
from peftbench.failures import noted
from peftbench.graph import Job, Plan, StudyPlan
from peftbench.stages import RULES
from peftbench.store import atomic_text
from peftbench.views import ClaimsSpec


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status. A ``UserError`` becomes one line and status 1."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except UserError as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peftbench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    runs = commands.add_parser("runs", help="list the runs of studies, with digests and state")
    _project_options(runs)
    runs.add_argument("studies", nargs="*", metavar="STUDY", help="default: those of config/config.yaml")
    runs.add_argument("--json", action="store_true", help="one JSON object per line")
    runs.set_defaults(run=_runs)

    studies = commands.add_parser("studies", help="count the cells, trainings and predictions of each study")
    _project_options(studies)
    studies.add_argument("studies", nargs="*", metavar="STUDY", help="studies or groups; default: all")
    studies.set_defaults(run=_count_studies)

    ticket = commands.add_parser("ticket", help="write a job's ticket and print the command that runs it")
    _project_options(ticket)
    ticket.add_argument("digest", metavar="RESULT", help="a digest, or the path of a result that ends in one")
    ticket.set_defaults(run=_ticket)

    pin = commands.add_parser(
        "pin", help="write the commits of branches and tags into model and data set files"
    )
    pin.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    pin.add_argument(
        "names", nargs="+", metavar="NAME", help="models and data sets, by the names of their files"
    )
    pin.set_defaults(run=_pin)

    claims = commands.add_parser("claims", help="test the paper's claims on what has run so far")
    _project_options(claims)
    claims.set_defaults(run=_claims)

    schema = commands.add_parser("schema", help="check or write what is made from the configuration's types")
    schema.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    schema.add_argument(
        "--write", action="store_true", help="write config/schema/*.json and config/README.md"
    )
    schema.set_defaults(run=_schema)

    for name in (
        "peftbench.score_cli",
        "peftbench.annotation.annotate_cli",
        "peftbench.reruns.commands",
        "peftbench.planning.plan_cli",
        "peftbench.watch.watch_cli",
        "peftbench.report.which_cli",
    ):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name).add_parser(commands)
    return parser


def _project_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays, as for snakemake")


def _plan(arguments: argparse.Namespace, studies: list[str]) -> Plan:
    plan = Plan(Settings.from_files(arguments.root.resolve(), arguments.configfile))
    for name in studies or plan.main.studies:
        plan.study(name)
    return plan


def _runs(arguments: argparse.Namespace) -> int:
    """One line per unique run: state, training digest, score digest, label."""
    plan = _plan(arguments, arguments.studies)
    results = arguments.root / plan.results
    failed = noted(results)
    seen: set[str] = set()
    for name in arguments.studies or plan.main.studies:
        study = plan.study(name)
        for run, score in zip(study.runs, study.scores, strict=True):
            if score.digest in seen:
                continue
            seen.add(score.digest)
            predictions = score.inputs["predictions"]
            train = predictions.inputs.get("run")
            row = {
                "state": _state(results, score, predictions, train, failed),
                "run": train.digest if train else "-",
                "score": score.digest,
                "model": run.model,
                "dataset": run.dataset,
                "target": run.target,
                "method": run.method,
                "connector": run.connector,
                "location": run.location,
                "train_size": run.train_size,
                "seed": run.seed,
                **run.axes,
            }
            print(json.dumps(row) if arguments.json else "  ".join(_column(key, row[key]) for key in row))
    if not arguments.json:
        print(f"{len(seen)} runs", file=sys.stderr)
    return 0


def _count_studies(arguments: argparse.Namespace) -> int:
    """One line per study; "new" are the trainings that no study above it has."""
    plan = Plan(Settings.from_files(arguments.root.resolve(), arguments.configfile))
    known = plan.settings.names("study")
    all_studies = [plan.study(name) for name in known]
    groups = {study.group for study in all_studies if study.group}
    for name in arguments.studies:
        if name not in {*known, *groups}:
            raise UserError(f"there is no study or group {name!r}{did_you_mean(name, {*known, *groups})}")
    chosen = arguments.studies or known
    studies = [study for study in all_studies if study.name in chosen or study.group in chosen]
    results = arguments.root / plan.results
    seen: set[str] = set()
    rows = [["study", "cells", "trainings", "new", "predictions", "to do"]]
    todo_all: set[str] = set()
    for study in studies:
        jobs = _jobs_of(study)
        trainings = {job.digest for job in jobs if job.stage == "train"}
        predictions = {job.digest for job in jobs if job.stage == "predict"}
        todo = {job.digest for job in jobs if job.stage in _COUNTED and not (results / job.record).exists()}
        cells = [
            study.name,
            len(study.runs),
            len(trainings),
            len(trainings - seen),
            len(predictions),
            len(todo),
        ]
        rows.append([str(cell) for cell in cells])
        seen |= trainings
        todo_all |= todo
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells_text = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        print(row[0].ljust(widths[0]), *cells_text)
    print(f"{len(seen)} unique trainings; {len(todo_all)} trainings and predictions to do", file=sys.stderr)
    return 0


_COUNTED = ("train", "predict")


def _jobs_of(study: StudyPlan) -> list[Job]:
    """All jobs behind a study's scores, each once."""
    waiting = [*study.scores]
    found: dict[str, Job] = {}
    while waiting:
        job = waiting.pop()
        if job.digest not in found:
            found[job.digest] = job
            waiting.extend(job.inputs.values())
    return list(found.values())


_WIDTHS = {"state": 9, "run": 16, "model": 14, "dataset": 18, "method": 8, "connector": 6, "location": 4}


def _column(key: str, value: Any) -> str:
    return (
        f"{value!s:{_WIDTHS.get(key, 0)}}".rstrip() if key == "seed" else f"{value!s:{_WIDTHS.get(key, 1)}}"
    )


def _state(results: Path, score: Job, predictions: Job, train: Job | None, failed: set[str]) -> str:
    """How far a run has come: scored, predicted, trained, planned; or failed when last tried."""
    if score.digest in failed or (train and train.digest in failed):
        return "failed"
    if (results / score.record).exists():
        return "scored"
    if (results / predictions.record).exists():
        return "predicted"
    return "trained" if train and (results / train.record).exists() else "planned"


def _ticket(arguments: argparse.Namespace) -> int:
    """Write the ticket of one job and print its command line."""
    plan = _plan(arguments, [])
    for name in plan.settings.names("study"):
        plan.study(name)
    path = Path(arguments.digest)
    named = path.parent if path.name == "record.json" else path
    job = plan.job(named.name.rpartition("-")[2])
    file = Path(plan.ticket_file(job))
    atomic_text(file, job.ticket)
    words = [f"{sys.executable} {arguments.root / 'workflow/scripts' / RULES[job.stage]}.py --ticket {file}"]
    if job.stage not in ("tabulate", "plot", "report"):
        if job.inputs:
            words.append("--inputs " + " ".join(f"{plan.results}/{i.record}" for i in job.inputs.values()))
        words.append(f"--output {plan.results}/{job.record}")
    else:
        words.append(f"--output {plan.marker(job)}")
    words.append(f"--execution '{plan.execution(job)}'")
    print(" \\\n  ".join(words))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    """Like the workflow's target of that name, without waiting for the runs that are not there."""
    plan = Plan(Settings.from_files(arguments.root.resolve(), arguments.configfile))
    if plan.claims is None or plan.claims.claims is None:
        raise UserError("config/claims.yaml: there is no such file: nothing is claimed")
    results = arguments.root / plan.results
    spec = msgspec.json.decode(plan.claims.claims.spec, type=ClaimsSpec)
    facts = importlib.import_module("peftbench.analysis.claims").test_claims(
        spec, results, results / "tables"
    )
    print(json.dumps(facts, indent=1))
    print(f"{results}/tables/claims.html", file=sys.stderr)
    return 0


def _pin(arguments: argparse.Namespace) -> int:
    """Asks the hub; needs a network."""
    from peftbench.retrieve.pin import pin_file

    folders = [arguments.root / "config" / kind for kind in ("models", "datasets")]
    known = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    for name in arguments.names:
        if name not in known:
            raise UserError(f"there is no model or data set {name!r}{did_you_mean(name, known)}")
    for name in arguments.names:
        changes = pin_file(known[name])
        print("\n".join(changes) if changes else f"{known[name]}: nothing to pin")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    """Write the generated files, or name those that have drifted."""
    from peftbench import schema

    if arguments.write:
        for path in schema.write(arguments.root):
            print(path)
        return 0
    stale = schema.drifted(arguments.root)
    for path in stale:
        print(f"{path} is not up to date: run 'peftbench schema --write'", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
