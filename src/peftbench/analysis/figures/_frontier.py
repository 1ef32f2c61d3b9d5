"""Which points no other beats, and labels that do not cover each other."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, lower, right, upper."""
RADII = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 78.0)
ANGLES = (0, 180, 90, 270, 35, 145, 215, 325, 60, 120, 240, 300)
"""Where a label may stand around its point, best first; distances in points."""


def frontier(points: Sequence[tuple[float, float]], x_higher: bool, y_higher: bool) -> list[bool]:
    """Whether each point is on the Pareto frontier: none is at least as good in both and better in one."""
    signed = [(x if x_higher else -x, y if y_higher else -y) for x, y in points]
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in signed) for x, y in signed]


def staircase(
    points: Sequence[tuple[float, float]], x_higher: bool, y_higher: bool
) -> tuple[list[float], list[float]]:
    """The edge of what is reached, through the points of a frontier: for each x the best y with no worse an x."""
    ordered = sorted(set(points), key=lambda point: (point[0] if x_higher else -point[0], point[1]))
    ordered.reverse()  # from the best x to the worst, y getting better
    xs: list[float] = []
    ys: list[float] = []
    for x, y in ordered:
        if xs:
            xs.append(x)
            ys.append(ys[-1])
        xs.append(x)
        ys.append(y)
    return xs, ys


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], area: Box
) -> list[tuple[float, float, bool]]:
    """Lower left corner of each label, and whether it needs a line to its point; in points of the page.

    ``sizes`` are widths and heights. Labels are placed in order, each where it covers least of what is there.
    """
    dots: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    taken: list[Box] = []
    found: list[tuple[float, float, bool]] = []
    for place, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=True)):
        best: tuple[float, Box, float] | None = None
        for radius in RADII:
            for order, angle in enumerate(ANGLES):
                box = _box(x, y, radius, angle, width, height)
                others = [dot for i, dot in enumerate(dots) if i != place]
                cost = 40 * sum(_overlap(box, one) for one in taken) + 15 * sum(
                    _overlap(box, one) for one in others
                )
                cost += 40 * _outside(box, area) + 2.0 * radius + 0.5 * order
                if best is None or cost < best[0]:
                    best = (cost, box, radius)
        assert best is not None
        taken.append(best[1])
        found.append((best[1][0], best[1][1], best[2] > 12))
    return found


def _box(x: float, y: float, radius: float, angle: int, width: float, height: float) -> Box:
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    centre_x = x + dx * (radius + width / 2 * abs(dx))
    centre_y = y + dy * (radius + height / 2 * abs(dy))
    return (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, area: Box) -> float:
    return (
        max(0.0, area[0] - box[0])
        + max(0.0, area[1] - box[1])
        + max(0.0, box[2] - area[2])
        + max(0.0, box[3] - area[3])
    )
