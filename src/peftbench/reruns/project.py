"""The plan of everything that a project's files ask for, and where its results are."""

import argparse
from pathlib import Path

from peftbench.config import Settings
from peftbench.graph import Plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which project and which results."""
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays, as for snakemake")
    parser.add_argument("--results", type=Path, help="the results' folder, if not that of the configuration")


def whole_plan(root: Path, overlays: list[Path]) -> Plan:
    """The plan with all studies of the project and the claims expanded."""
    plan = Plan(Settings.from_files(root.resolve(), overlays))
    for name in plan.settings.names("study"):
        plan.study(name)
    _ = plan.claims
    return plan


def results_of(arguments: argparse.Namespace, plan: Plan) -> Path:
    """Where the results are; relative paths of the configuration start at the project's folder."""
    given: Path | None = arguments.results
    return given if given else Path(arguments.root) / plan.results
