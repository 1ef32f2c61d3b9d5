"""Where the stock SLURM executor is: installed, or in the folder that ``make setup`` puts it into.

Snakemake imports every executor plugin that it finds at each of its starts, on compute nodes too. The stock one then
imports pandas and runs several programs; it ends Snakemake where there is no ``which``. So it lies where Snakemake
does not look.
"""

import importlib.util
import sys
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

PACKAGE = "snakemake_executor_plugin_slurm"
FOLDER = Path(sys.prefix) / "lib" / "snakemake-slurm"


def find_stock() -> None:
    """Make the stock plugin importable; ``WorkflowError`` where it is not installed."""
    if importlib.util.find_spec(PACKAGE) is None and FOLDER.is_dir():
        sys.path.append(str(FOLDER))
        importlib.invalidate_caches()
    if importlib.util.find_spec(PACKAGE) is None:
        raise WorkflowError(
            "the executor slurm-resilient needs snakemake-executor-plugin-slurm: run 'make setup', or "
            "'pip install --no-deps -r envs/requirements-slurm.lock'"
        )
