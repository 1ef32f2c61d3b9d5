"""Kinds of figures of a study: one module for each, with ``draw(frame, context) -> matplotlib Figure``.

``frame`` is the study's long table (``peftbench.analysis.table``). ``draw`` is called inside ``rc_context(RC)``
of ``peftbench.analysis.plot``. A kind never raises for runs that have no result: it says so on the figure.
Modules with a leading underscore are what the kinds share.
"""

from pathlib import Path


def kinds() -> list[str]:
    """Names of all kinds."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
