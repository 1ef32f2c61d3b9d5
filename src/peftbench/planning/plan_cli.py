"""``peftbench plan``: what studies will cost, and the totals at the end of a dry-run."""

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

from peftbench.config import Settings
from peftbench.errors import UserError, did_you_mean
from peftbench.graph import Plan, StudyPlan
from peftbench.planning.hardware import Hardware, hardware_of_gpus, read_hardware
from peftbench.planning.text import summary, to_csv, to_json
from peftbench.planning.totals import Planner, Result
from peftbench.planning.wanted import Wanted, to_run, wanted
from peftbench.store import atomic_text
from peftbench.warm import may_use_gpu

HARDWARE_VARIABLE, GPUS_VARIABLE = "PEFTBENCH_HARDWARE", "PEFTBENCH_GPUS"
"""Environment variables for dry-runs, which take no further options: a name of ``config/hardware``, a number."""
SMALL = 100_000_000
"""Parameters up to which models are planned for a CPU, where no hardware is named and no GPU is there."""
FOR_SMALL, FOR_LARGE = "cpu-2-cores", "a100-80gb"


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("plan", help="hours, memory, disk and cost of studies before they run")
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", help="studies or groups; default: those of config.yaml"
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays, as for snakemake")
    parser.add_argument("--hardware", metavar="NAME", help="a file of config/hardware, without suffix")
    parser.add_argument(
        "--gpus", type=_positive, default=1, metavar="N", help="for the schedule (default: 1)"
    )
    parser.add_argument("--price", type=float, metavar="PER_HOUR", help="instead of the hardware file's")
    parser.add_argument(
        "--records",
        type=Path,
        nargs="*",
        default=[],
        metavar="RESULTS",
        help="further results folders to learn from",
    )
    parser.add_argument("--all", action="store_true", help="as if no result were there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, job by job ('-': to stdout)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one line per job")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page with charts; opens from disk")
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"a number of GPUs is wanted, not {text!r}")
    return value


def _run(arguments: argparse.Namespace) -> int:
    root = arguments.root.resolve()
    plan = Plan(Settings.from_files(root, arguments.configfile))
    studies = chosen(plan, arguments.studies)
    asked = wanted(studies)
    run = set(asked.jobs) if arguments.all else to_run(plan, asked, root)
    for folder in arguments.records:
        if not folder.is_dir():
            raise UserError(f"--records: {folder}: there is no such folder: name a results folder")
    title = " ".join(arguments.studies or plan.main.studies)
    result = make(
        plan, asked, run, root, title, arguments.hardware, arguments.gpus, arguments.price, arguments.records
    )
    if arguments.json and str(arguments.json) == "-":
        print(to_json(result), end="")
    else:
        print("\n".join(summary(result)))
    if arguments.json and str(arguments.json) != "-":
        atomic_text(arguments.json, to_json(result))
    if arguments.csv:
        atomic_text(arguments.csv, to_csv(result))
    if arguments.html:
        from peftbench.planning.page import to_html

        atomic_text(arguments.html, to_html(result))
    for path in filter(None, (arguments.json, arguments.csv, arguments.html)):
        if str(path) != "-":
            print(path, file=sys.stderr)
    return 0


def chosen(plan: Plan, names: list[str]) -> list[StudyPlan]:
    """Studies by name or group; ``UserError`` with the nearest name for others."""
    known = plan.settings.names("study")
    if not names:
        return [plan.study(name) for name in plan.main.studies]
    if set(names) <= set(known):
        return [plan.study(name) for name in dict.fromkeys(names)]
    every = [plan.study(name) for name in known]
    groups = {study.group for study in every if study.group}
    for name in names:
        if name not in {*known, *groups}:
            raise UserError(f"there is no study or group {name!r}{did_you_mean(name, {*known, *groups})}")
    return [study for study in every if study.name in names or study.group in names]


def make(
    plan: Plan,
    asked: Wanted,
    run: set[str],
    root: Path,
    title: str,
    hardware: str | None = None,
    gpus: int = 1,
    price: float | None = None,
    records: list[Path] | None = None,
) -> Result:
    """The plan of some jobs; ``UserError`` for unknown hardware and impossible prices."""
    name, machine = pick_hardware(plan, asked, hardware)
    if price is not None and not (math.isfinite(price) and price >= 0.0):
        raise UserError(f"--price: {price:g} per hour is no price: give 0 or more")
    if gpus > 1 and machine.kind == "cpu":
        raise UserError(f"--gpus: {name} has no GPUs: name another --hardware")
    return Planner(plan, name, machine, root, records or []).result(asked, run, title, gpus, price)


def pick_hardware(plan: Plan, asked: Wanted, name: str | None) -> tuple[str, Hardware]:
    """The hardware called ``name``; without a name that of this machine's GPU, else what suits the models."""
    root = plan.settings.root
    name = name or (None if plan.main.execution.device == "cpu" else hardware_of_gpus(root))
    if name:
        return name, read_hardware(root, name)
    small = plan.main.execution.device == "cpu" or not may_use_gpu(plan.main.execution.device)
    if small:
        builds = {
            job.directory.split("/")[1].rpartition("-")[0]
            for job in asked.jobs.values()
            if job.stage == "build"
        }
        sizes = [sum(plan.settings.model(model, "the plan").parameters.values()) for model in builds]
        small = max(sizes, default=0) <= SMALL
    name = FOR_SMALL if small else FOR_LARGE
    return name, read_hardware(root, name)


def print_dry_run(plan: Plan, planned: set[str], run: set[str], root: Path) -> None:
    """The totals at the end of ``snakemake -n``: ``planned`` are the digests of all jobs, ``run`` of those that run.

    Says what is wrong in one line instead of raising: a dry-run that worked has not failed.
    """
    try:
        asked = wanted([plan.study(name) for name in plan.settings.names("study")] + _claims(plan, planned))
        jobs = {digest: job for digest, job in asked.jobs.items() if digest in planned | run}
        # What is done has no jobs of its own in the graph of Snakemake, but for what runs and its inputs.
        kept = Wanted(jobs=jobs, after={d: asked.after[d] for d in jobs}, study=asked.study)
        gpus = _positive(os.environ.get(GPUS_VARIABLE) or "1")
        hardware = os.environ.get(HARDWARE_VARIABLE) or None
        lines = summary(make(plan, kept, run & set(jobs), root, "this run", hardware, gpus), short=True)
    except (UserError, argparse.ArgumentTypeError) as error:
        lines = [f"no plan of the costs: {error}"]
    print("\n".join(["", *lines]), flush=True)


def _claims(plan: Plan, planned: set[str]) -> list[StudyPlan]:
    claims = plan.claims
    return [claims] if claims and claims.claims and claims.claims.digest in planned else []
