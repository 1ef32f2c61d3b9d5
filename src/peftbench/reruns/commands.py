"""``peftbench explain``, ``bless`` and ``gc`` on the command line."""

import argparse
import json
from importlib import import_module
from typing import Any

from peftbench.reruns.project import add_options, results_of, whole_plan


def add_parser(commands: Any) -> None:
    """Add the three commands to those of ``peftbench``."""
    explain = commands.add_parser("explain", help="why a run would run, or what it was made from")
    add_options(explain)
    explain.add_argument("target", metavar="RESULT|STUDY", help="a digest, a path of a result, or a study")
    explain.add_argument("filters", nargs="*", metavar="AXIS=VALUE", help="of a study's cells: method=lora")
    explain.add_argument("--json", action="store_true", help="all there is to say, as one JSON object")
    explain.set_defaults(run=_explain)
    for name in ("bless", "gc"):
        import_module(f"peftbench.reruns.{name}").add_command(commands)


def _explain(arguments: argparse.Namespace) -> int:
    from peftbench.reruns.explain import Explainer
    from peftbench.reruns.screens import screen

    plan = whole_plan(arguments.root, arguments.configfile)
    answer = Explainer(plan, results_of(arguments, plan)).target(arguments.target, arguments.filters)
    print(json.dumps(answer, indent=1, ensure_ascii=False) if arguments.json else screen(answer))
    return 0
