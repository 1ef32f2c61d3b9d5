"""Training curves as inline SVG: a panel per data set, a line per run. Colours are variables of the page."""

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup
from msgspec import Struct

from peftbench.analysis.lines import Line, read_columns
from peftbench.analysis.style import DASHES, colour_index, method_title
from peftbench.errors import UserError

LOG = "log.csv"
EVALUATION = "eval.csv"
POINTS = 120
"""Most points of a line; longer logs are drawn as means of equal stretches."""
WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 22
DECADES = 4
"""Most decades that the axis of losses spans: a loss of zero must not flatten all others."""

Points = list[tuple[float, float]]


class Curve(Struct, frozen=True, kw_only=True):
    """One run: loss per step, and the losses on the test split where the study measures them."""

    line: Line
    train: Points
    evaluation: Points


class CurvePanel(Struct, frozen=True, kw_only=True):
    """One data set of one model."""

    title: str
    svg: Markup
    without: list[str]
    """Runs that have no log."""


def read_curve(line: Line) -> Curve | None:
    """The logs of a run; None where it has not been trained. A damaged log is a ``UserError``."""
    path = line.run / LOG
    if line.untuned or not path.exists():
        return None
    train = _points(read_columns(path, ["step", "loss"]).rows())
    evaluation: Points = []
    if (line.run / EVALUATION).exists():
        evaluation = _points(read_columns(line.run / EVALUATION, ["step", "loss"]).rows())
    return Curve(line=line, train=_thinned(train), evaluation=evaluation) if train else None


def _points(rows: Sequence[tuple[object, ...]]) -> Points:
    try:
        points = [(float(step), float(loss)) for step, loss in rows]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError("a log of losses holds something else than numbers") from None
    return [(step, loss) for step, loss in points if math.isfinite(step) and math.isfinite(loss)]


def _thinned(points: Points) -> Points:
    if len(points) <= POINTS:
        return points
    size = math.ceil(len(points) / POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def curve_panel(title: str, lines: Sequence[Line]) -> CurvePanel:
    """The panel of one data set. Runs without a log are named, not left out in silence."""
    curves, without = [], []
    for line in lines:
        if line.untuned:
            continue
        name = _name(line)
        try:
            curve = read_curve(line)
        except UserError:
            without.append(f"{name} (log damaged)")
            continue
        if curve is None:
            without.append(name)
        else:
            curves.append(curve)
    return CurvePanel(title=title, svg=_svg(title, curves) if curves else Markup(""), without=without)


def _name(line: Line) -> str:
    return ", ".join(part for part in (method_title(line.method), line.variant) if part)


def _svg(title: str, curves: Sequence[Curve]) -> Markup:
    losses = [loss for curve in curves for _, loss in [*curve.train, *curve.evaluation]]
    high = max(losses)
    floor = high / 10**DECADES if high > 0 else 1e-6
    low = max(min(losses), floor)
    if high <= low * 1.5:
        low, high = low / 1.3, max(high, low) * 1.3
    steps = max(step for curve in curves for step, _ in [*curve.train, *curve.evaluation])
    span = math.log(high / low)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / steps, 1)

    def y(loss: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * math.log(high / max(loss, low)) / span, 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: loss per step">',
        '<g class="grid">',
    ]
    for tick in _log_ticks(low, high):
        parts.append(f'<path d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(tick) + 3.5}" text-anchor="end">{tick:g}</text>')
    for step in _linear_ticks(steps):
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - 6}" text-anchor="middle">{step:g}</text>')
    parts.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/></g>')
    for curve in curves:
        colour = f"var(--m{colour_index(curve.line.position)})"
        dash = DASHES[curve.line.kind % len(DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        path = " ".join(f"{x(step)},{y(loss)}" for step, loss in curve.train)
        name = escape(_name(curve.line))
        parts.append(f'<g style="--c:{colour}"><title>{name}</title><polyline points="{path}"{style}/>')
        if len(curve.train) == 1:
            parts.append(_dot(x(curve.train[0][0]), y(curve.train[0][1])))
        parts.extend(_dot(x(step), y(loss)) for step, loss in curve.evaluation)
        parts.append("</g>")
    parts.append("</svg>")
    return Markup("".join(parts))


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="3"/>'


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    decades = [tick for tick in inside if round(math.log10(tick), 9).is_integer()]
    return decades if len(inside) > 6 and len(decades) > 1 else inside


def _linear_ticks(steps: float) -> list[float]:
    rough = steps / 4
    magnitude = 10.0 ** math.floor(math.log10(max(rough, 1)))
    size = next((m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough), magnitude * 10)
    return [i * size for i in range(int(steps / size) + 1)]
