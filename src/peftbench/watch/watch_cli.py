"""``peftbench watch``: progress, running jobs, costs and failures of what runs, in a terminal or into a file."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from peftbench.config import Settings
from peftbench.graph import Plan
from peftbench.running import Planned, Run
from peftbench.watch.snapshot import View, Watcher

LOOKS = 2.0
"""Seconds between two looks, at least; slow file systems are looked at less often."""
TOLD = 20
"""Failures that are told in full into a file."""
WIDTH = 120
"""Columns of ``--once`` into a file."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "watch", help="how far the running snakemake is: live, or a line now and then"
    )
    parser.add_argument(
        "studies",
        nargs="*",
        metavar="STUDY",
        help="to show where no snakemake is at work; default: config.yaml's",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays, as for snakemake")
    parser.add_argument("--results", type=Path, help="the results' folder, if not that of the configuration")
    parser.add_argument("--once", action="store_true", help="one look")
    parser.add_argument(
        "--every",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="between two lines into a file (default: 60)",
    )
    parser.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> int:
    settings = Settings.from_files(arguments.root.resolve(), arguments.configfile)
    results = arguments.results or arguments.root / settings.main.execution.results
    watcher = Watcher(results)
    if not watcher.alive():
        watcher.idle = _idle(Plan(settings), arguments.studies, arguments.root)
        _print_screen(watcher.look())
        return 0
    _estimate(watcher)
    if arguments.once:
        _print_screen(watcher.look())
        return 0
    try:
        view = _live(watcher) if sys.stdout.isatty() else _lines(watcher, max(1.0, arguments.every))
    except KeyboardInterrupt:
        return 130
    return 0 if view.done == view.total else 1


def _idle(plan: Plan, studies: list[str], root: Path) -> Run:
    """The jobs of some studies, as if a Snakemake had announced them."""
    from peftbench.planning.plan_cli import chosen
    from peftbench.planning.wanted import wanted
    from peftbench.watch.announce import planned

    jobs = wanted(chosen(plan, studies)).jobs
    announced: dict[str, Planned] = {digest: planned(plan, job) for digest, job in jobs.items()}
    folder = str(root.resolve())
    return Run(
        who="", folder=folder, root=folder, config={}, jobs=announced, failed_before={}, started=time.time()
    )


def _estimate(watcher: Watcher) -> None:
    from peftbench.watch.estimates import estimates

    for run in watcher.alive().values():
        watcher.estimates |= estimates(run)


def _print_screen(view: View) -> None:
    from rich.console import Console

    from peftbench.watch.screen import screen

    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False).print(screen(view))


def _live(watcher: Watcher) -> View:
    """Redraw in the terminal until no Snakemake is at work."""
    from rich.console import Console
    from rich.live import Live

    from peftbench.watch.screen import screen

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            start = time.monotonic()
            view = watcher.look()
            live.update(screen(view), refresh=True)
            if not view.at_work:
                return view
            time.sleep(max(LOOKS, 10 * (time.monotonic() - start)))


def _lines(watcher: Watcher, every: float) -> View:
    """A line now and then, failures as they come, until no Snakemake is at work."""
    from peftbench.watch.screen import failure_lines, line

    told: set[str] = set()
    last, said = 0.0, ""
    while True:
        start = time.monotonic()
        view = watcher.look()
        for failure in view.failures:
            key = repr(msgspec.to_builtins(failure))
            if key in told:
                continue
            told.add(key)
            if len(told) <= TOLD:
                print("\n".join(failure_lines(failure)), flush=True)
            elif len(told) == TOLD + 1:
                print(f"further failures are only counted: see {view.place}/.failed", flush=True)
        if start - last >= every or not last or not view.at_work:
            text = line(view)
            if text[8:] != said or not view.at_work:
                print(text if view.at_work else f"{text}; snakemake has ended", flush=True)
                said = text[8:]
            last = start
        if not view.at_work:
            return view
        time.sleep(max(LOOKS, 10 * (time.monotonic() - start)))
