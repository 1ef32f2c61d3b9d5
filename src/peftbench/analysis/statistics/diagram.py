"""Critical-difference diagram: mean ranks on a line, bars over methods that cannot be told apart."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.analysis.plot import RC
from peftbench.analysis.statistics.ranks import Ranking
from peftbench.analysis.statistics.result import NotComputable
from peftbench.analysis.style import INK, MUTED, SERIES, SURFACE, colour_index, method_title
from peftbench.store import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def groups(ranking: Ranking) -> list[tuple[int, int]]:
    """Maximal runs of methods, in the order of their ranks, whose mean ranks differ by less than the CD."""
    if isinstance(ranking.critical_difference, NotComputable):
        return []
    ranks = sorted(ranking.mean_ranks)
    found: list[tuple[int, int]] = []
    for start, rank in enumerate(ranks):
        end = max(i for i, other in enumerate(ranks) if other - rank < ranking.critical_difference)
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return found


def draw_ranks(ranking: Ranking, title: str, labels: dict[str, str] | None = None) -> "Figure":
    """The diagram; to be called and saved inside ``rc_context(RC)``. ``labels``: what methods are called."""
    from matplotlib.figure import Figure

    count = len(ranking.methods)
    order = sorted(range(count), key=lambda i: (ranking.mean_ranks[i], i))
    bars = groups(ranking)
    rows = (count + 1) // 2
    top, gap, step = 1.08, 0.16, 0.24
    below = 0.2 + gap * len(bars) + step * rows + 0.3
    height, width = top + below, 6.4
    figure = Figure(figsize=(width, height), facecolor=SURFACE)
    axes = figure.add_axes((0.26, 0.0, 0.48, 1.0))
    axes.set_axis_off()
    axes.set_xlim(1, max(count, 2))
    axes.set_ylim(-below, top)
    figure.text(0.15 / width, 1 - 0.18 / height, title, fontsize=10.5, fontweight="bold", va="top")
    figure.text(0.15 / width, 1 - 0.42 / height, _note(ranking), fontsize=8, color=MUTED, va="top")
    axes.plot([1, max(count, 2)], [0, 0], color=INK, linewidth=1.2, clip_on=False)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, 0.07], color=INK, linewidth=1.2, clip_on=False)
        axes.annotate(str(rank), (rank, 0.1), ha="center", va="bottom", fontsize=8.5, color=INK)
    for depth, (start, end) in enumerate(bars):
        y = -0.14 - gap * depth
        ends = [ranking.mean_ranks[order[start]], ranking.mean_ranks[order[end]]]
        pad = 0.012 * count
        axes.plot([ends[0] - pad, ends[1] + pad], [y, y], color=INK, linewidth=3.2, solid_capstyle="round")
    first = -0.2 - gap * len(bars)
    for place, index in enumerate(order):
        left = place < rows
        y = first - step * (place if left else count - 1 - place) - 0.1
        _leader(axes, ranking, index, y, left, labels or {})
    return figure


def _leader(axes: Any, ranking: Ranking, index: int, y: float, left: bool, labels: dict[str, str]) -> None:
    """The line from a method's rank to its name at the side."""
    from matplotlib.transforms import blended_transform_factory

    rank, colour = ranking.mean_ranks[index], SERIES[colour_index(index)]
    side = -0.03 if left else 1.03
    name = labels.get(ranking.methods[index]) or method_title(ranking.methods[index])
    low, high = axes.get_xlim()
    edge = low + side * (high - low)
    axes.plot([rank, rank, edge], [0, y, y], color=colour, linewidth=1.1, clip_on=False, zorder=1)
    axes.plot([rank], [0], marker="o", markersize=4.6, color=colour, clip_on=False, zorder=3)
    text = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
    axes.text(
        side + (-0.015 if left else 0.015),
        y,
        text,
        transform=blended_transform_factory(axes.transAxes, axes.transData),
        ha="right" if left else "left",
        va="center",
        fontsize=9,
        bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 0.6},
    )


def _note(ranking: Ranking) -> str:
    parts = [f"Mean rank over {ranking.blocks} block{'s' if ranking.blocks != 1 else ''}, 1 is best"]
    if ranking.dropped:
        parts.append(f"{ranking.dropped} incomplete left out")
    found = ranking.friedman
    parts.append(f"Friedman {found}" if isinstance(found, NotComputable) else f"Friedman p = {found.p:.2g}")
    text = "; ".join(parts)
    if not isinstance(ranking.critical_difference, NotComputable):
        text += f"\nBars: closer than the critical difference {ranking.critical_difference:.2f} "
        text += f"(Nemenyi, level {ranking.alpha:g})"
    return text


def save_ranks(
    ranking: Ranking, title: str, out_dir: Path, stem: str, labels: dict[str, str] | None = None
) -> dict[str, Path]:
    """Write ``<stem>.png`` and ``<stem>.svg``; the paths by kind. Equal rankings give equal bytes."""
    import matplotlib

    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    paths = {}
    with matplotlib.rc_context(RC):
        figure = draw_ranks(ranking, title, labels)
        for kind, extra in metadata.items():
            paths[kind] = out_dir / f"{stem}.{kind}"
            atomic_write(
                paths[kind],
                lambda temporary, kind=kind, extra=extra: figure.savefig(  # type: ignore[misc]
                    temporary, format=kind, dpi=160, metadata=extra
                ),
            )
    return paths
