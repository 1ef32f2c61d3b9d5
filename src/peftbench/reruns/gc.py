"""``peftbench gc``: what no current study refers to, with sizes; removed on demand.

Kept is what any study of the configurations asks for, what jobs that run or wait need, what is younger than
asked, and everything that these were made from. Removal renames a folder into ``.trash`` first, under the lock
that a job of that digest would take: whatever interrupts it, a result is there as a whole or not at all.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.reruns.garbage import Collector, Found, Item
from peftbench.reruns.project import whole_plan
from peftbench.reruns.screens import size


def add_command(commands: Any) -> None:
    """Add ``gc`` to the commands of ``peftbench``."""
    gc = commands.add_parser("gc", help="list, and on demand remove, what no current study refers to")
    gc.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: here)")
    gc.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        action="append",
        default=[],
        metavar="FILE",
        help="overlays whose studies count too, besides those without; give the option once per combination",
    )
    gc.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="ROOT",
        help="another checkout that uses these results; what its studies refer to stays",
    )
    gc.add_argument("--results", type=Path, help="the results' folder, if not that of the configuration")
    gc.add_argument(
        "--keep-days", type=float, default=0.0, metavar="N", help="keep what is younger than that"
    )
    gc.add_argument("--delete", action="store_true", help="remove it, after a question")
    gc.add_argument("--yes", action="store_true", help="ask no question")
    gc.add_argument("--json", action="store_true", help="one JSON object")
    gc.add_argument("--needed", action="store_true", help="only print the digests that the studies refer to")
    gc.set_defaults(run=_gc)


def _gc(arguments: argparse.Namespace) -> int:
    if arguments.keep_days < 0:
        raise UserError(f"--keep-days {arguments.keep_days:g}: give 0 or more")
    plans = [whole_plan(arguments.root, overlays) for overlays in ([], *arguments.configfile)]
    needed = {digest for plan in plans for digest in plan.jobs}
    if arguments.needed:
        print("\n".join(sorted(needed)))
        return 0
    for other in arguments.also:
        needed |= _needed_by(other)
    results = arguments.results or arguments.root / plans[0].results
    if not results.is_dir():
        raise UserError(f"{results}: there is no such folder: nothing was made yet")
    collector = Collector(results, plans, needed, arguments.root, arguments.keep_days)
    found = collector.find()
    if arguments.json:
        print(json.dumps(_plain(found), indent=1, ensure_ascii=False))
    else:
        print("\n".join(_screen(found)))
    if not arguments.delete or not found.items:
        return 0
    if not arguments.yes and not _agreed(found):
        print("nothing was removed", file=sys.stderr)
        return 1
    removed, freed, problems = collector.remove(found.items)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    print(f"removed {removed} of {len(found.items)}, {size(freed)}", file=sys.stderr)
    return 0


def _needed_by(root: Path) -> set[str]:
    """What the studies of another checkout refer to, by its own code."""
    source = root.resolve() / "src"
    if not (source / "peftbench/reruns/gc.py").is_file():
        raise UserError(f"--also {root}: no checkout of this project, or an older one without gc")
    done = subprocess.run(
        [sys.executable, "-m", "peftbench.cli", "gc", "--needed"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(source)},
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"--also {root}: {said}")
    return set(done.stdout.split())


def _totals(items: list[Item]) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for item in items:
        count, bytes_ = totals.get(item.kind, (0, 0))
        totals[item.kind] = count + 1, bytes_ + item.bytes
    return totals


def _screen(found: Found, listed: int = 20) -> Iterator[str]:
    results = [item for item in found.items if item.label or item.digest]
    for item in sorted(results, key=lambda item: -item.bytes)[:listed]:
        yield f"{size(item.bytes):>9}  {item.kind:10} {item.label or item.digest}  {item.path}"
    if len(results) > listed:
        yield f"           and {len(results) - listed} more (--json has all)"
    for kind, (count, bytes_) in _totals(found.items).items():
        yield f"{size(bytes_):>9}  {count} x {kind}"
    total = sum(item.bytes for item in found.items)
    yield f"{size(total):>9}  in all; {found.kept} results are referred to and stay"
    yield from (f"note: {note}" for note in found.notes)


def _plain(found: Found) -> dict[str, Any]:
    return {
        "items": [
            {"kind": i.kind, "path": str(i.path), "bytes": i.bytes, "digest": i.digest, "label": i.label}
            for i in found.items
        ],
        "totals": {kind: {"count": c, "bytes": b} for kind, (c, b) in _totals(found.items).items()},
        "bytes": sum(item.bytes for item in found.items),
        "kept": found.kept,
        "notes": found.notes,
    }


def _agreed(found: Found, ask: Callable[[str], str] = input) -> bool:
    total = size(sum(item.bytes for item in found.items))
    try:
        return ask(f"Remove these {len(found.items)}, {total}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
