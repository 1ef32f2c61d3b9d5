"""``peftbench which``: write the page "which method?" from what has run."""

import argparse
import sys
from pathlib import Path
from typing import Any

from peftbench.config import Settings
from peftbench.errors import UserError
from peftbench.graph import Plan
from peftbench.store import atomic_text


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of ``peftbench``."""
    parser = commands.add_parser("which", help="which method? a page made from the results of studies")
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", help="default: all that name pairs of summaries"
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays, as for snakemake")
    parser.add_argument(
        "--results", type=Path, help="the results folder (default: that of the configuration)"
    )
    parser.add_argument(
        "--count-on", default="llava-1.5-7b", metavar="MODEL", help="whose parameters are counted"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    parser.set_defaults(run=_which)


def _which(arguments: argparse.Namespace) -> int:
    from peftbench.report.which import which_page

    plan = Plan(Settings.from_files(arguments.root.resolve(), arguments.configfile))
    names = arguments.studies or [
        name for name in plan.settings.names("study") if plan.settings.study(name).pairs
    ]
    if not names:
        raise UserError("which: no study names pairs of summaries: name a study")
    results = arguments.results or arguments.root / plan.results
    page = which_page(plan, names, arguments.count_on, results)
    if arguments.out:
        atomic_text(arguments.out, page)
        print(arguments.out, file=sys.stderr)
    else:
        print(page, end="")
    return 0
