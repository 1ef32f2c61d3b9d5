"""The figure of a study: what it shows is for the module of its kind, here it is chosen, drawn and written.

Equal tables and logs give equal bytes: no dates, fixed ids, the font that matplotlib brings.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from peftbench.analysis import figures
from peftbench.analysis.figures._sheet import Context
from peftbench.analysis.style import INK, MUTED, RULE
from peftbench.analysis.table import read_long
from peftbench.canonical import file_sha256
from peftbench.errors import UserError, did_you_mean
from peftbench.store import atomic_write
from peftbench.views import PlotSpec

RC = {
    "svg.hashsalt": "peftbench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
}


def plot_study(spec: PlotSpec, table: Path, out_dir: Path, results: Path | None = None) -> dict[str, Any]:
    """Draw the long table ``table`` as ``<study>.png`` and ``<study>.svg``; return facts for the marker.

    ``results`` is the results folder, which the table's column ``scores`` is relative to; without it, the one
    whose ``tables`` the table lies in. Raises ``UserError`` for a table that cannot be read and for a kind of
    figure that there is not; runs without results are said so on the figure.
    """
    import matplotlib

    draw = _kind(spec.kind)
    frame = read_long(table)
    context = Context(
        title=spec.title,
        results=results or table.parent.parent,
        spec=spec,
        columns=spec.columns,
        summaries=dict(spec.summaries),
        labels=spec.labels,
        pairs=spec.pairs,
    )
    with matplotlib.rc_context(RC):
        figure = draw(frame, context)
        files = {kind: out_dir / f"{spec.study}.{kind}" for kind in ("png", "svg")}
        metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
        for kind, path in files.items():
            atomic_write(
                path,
                lambda temporary, kind=kind: figure.savefig(  # type: ignore[misc]
                    temporary, format=kind, dpi=160, metadata=metadata[kind]
                ),
            )
    return {
        "panels": len(figure.axes),
        "outputs": {path.name: file_sha256(path) for path in files.values()},
    }


def _kind(name: str) -> Any:
    """What draws figures of a kind."""
    known = figures.kinds()
    if name not in known:
        raise UserError(f"figure: unknown kind {name!r}{did_you_mean(name, known)}")
    return import_module(f"peftbench.analysis.figures.{name}").draw
