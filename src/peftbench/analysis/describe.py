"""Studies that describe: hand the work to the module of their kind, write what it says."""

from importlib import import_module
from pathlib import Path
from typing import Any

from peftbench.analysis.plain import write_plain
from peftbench.views import DescribeSpec


def describe_study(spec: DescribeSpec, results: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``<study>.csv``, ``.md``, ``.html`` and ``.tex`` to ``out_dir``; return facts for the marker.

    A kind has ``describe``, which gives a plain table, or ``write``, which lays out its own.
    """
    module = import_module(f"peftbench.analysis.descriptions.{spec.kind}")
    if hasattr(module, "write"):
        return {"outputs": module.write(spec, results, out_dir)}
    return {"outputs": write_plain(module.describe(spec, results), out_dir, spec.study)}
