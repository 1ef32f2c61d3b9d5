"""Studies that describe: hand the work to the module of their kind, write what it says."""

from importlib import import_module
from pathlib import Path
from typing import Any

from peftbench.analysis.plain import PlainTable, write_plain
from peftbench.views import DescribeSpec


def describe_study(spec: DescribeSpec, results: Path, out_dir: Path) -> dict[str, Any]:
    """Write ``<study>.csv``, ``.md``, ``.html`` and ``.tex`` to ``out_dir``; return facts for the marker."""
    module = import_module(f"peftbench.analysis.descriptions.{spec.kind}")
    table: PlainTable = module.describe(spec, results)
    return {"rows": len(table.rows), "outputs": write_plain(table, out_dir, spec.study)}
