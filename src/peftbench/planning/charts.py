"""The charts of the plan's page, as SVG: hours by model and stage, and when which device runs what."""

from collections.abc import Iterable, Sequence

from markupsafe import escape

from peftbench.planning.text import duration, hours
from peftbench.planning.totals import Planned, Result

GROUPS = {
    "train": ("train", "expose", "choose"),
    "predict": ("predict",),
    "judge": ("judge",),
    "data": ("retrieve", "prepare", "subset", "build"),
    "views": ("score", "tabulate", "plot", "report", "describe", "claims"),
}
"""Stages of one colour."""
WORDS = {
    "train": "training",
    "predict": "answering",
    "judge": "judging",
    "data": "fetching and preparing",
    "views": "scores, tables, figures",
}
LANES = 16
"""Devices of one pool that are drawn."""
WIDTH, LEFT = 960, 150
STEPS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 432000, 864000)
"""Distances of the axis' marks in seconds."""
PIXEL = 1.0
"""Jobs narrower than this are drawn as one with their neighbours of the same colour."""


def group_of(stage: str) -> str:
    """The colour of a stage."""
    return next(group for group, stages in GROUPS.items() if stage in stages)


def legend(groups: Iterable[str]) -> str:
    """One entry per colour that is used."""
    used = set(groups)
    items = "".join(
        f'<li><i class="{group}"></i>{escape(WORDS[group])}</li>' for group in GROUPS if group in used
    )
    return f'<ul class="keys">{items}</ul>'


def bars(result: Result) -> str:
    """Hours of device time by model, split by stage; the widest model fills the width."""
    on_gpu = result.hardware.kind == "gpu"
    sums: dict[str, dict[str, float]] = {}
    for job in result.jobs:
        time = (job.gpu_seconds if on_gpu else job.cpu_seconds) / 3600
        if time > 0:
            of = sums.setdefault(job.model or "no model", {})
            group = group_of(job.stage)
            of[group] = of.get(group, 0.0) + time
    if not sums:
        return ""
    order = sorted(sums, key=lambda model: -sum(sums[model].values()))
    most = sum(sums[order[0]].values())
    room, height = WIDTH - LEFT - 90, 30
    lines = []
    for at, model in enumerate(order):
        y, x, total = at * height, float(LEFT), sum(sums[model].values())
        lines.append(f'<text class="name" x="{LEFT - 8}" y="{y + 17}">{escape(model)}</text>')
        for group in GROUPS:
            value = sums[model].get(group, 0.0)
            if value:
                width = value / most * room
                hint = f"{model}, {WORDS[group]}: {hours(value)} h"
                lines.append(
                    f'<rect class="{group}" x="{x:.1f}" y="{y + 3}" width="{max(width, 0.5):.1f}" height="20">'
                    f"<title>{escape(hint)}</title></rect>"
                )
                x += width
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 17}">{hours(total)} h</text>')
    return _svg(len(order) * height + 2, lines, f"{'GPU' if on_gpu else 'CPU'}-hours by model and stage")


def gantt(result: Result) -> str:
    """Every device a line, every job a box from its start to its end; the critical path is marked."""
    if not result.jobs or result.schedule.seconds <= 0:
        return ""
    room = WIDTH - LEFT - 12
    scale = room / result.schedule.seconds
    lanes = _lanes(result)
    row = 18 if len(lanes) > 10 else 22
    lines = []
    path = set(result.path)
    top = 22
    for mark in _marks(result.schedule.seconds):
        x = LEFT + mark * scale
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{top + len(lanes) * row}"/>')
        lines.append(f'<text class="mark" x="{x:.1f}" y="11">{_clock(mark)}</text>')
    for at, (name, jobs) in enumerate(lanes):
        y = top + at * row
        lines.append(f'<text class="name" x="{LEFT - 8}" y="{y + row - 7}">{escape(name)}</text>')
        for box in _boxes(result, jobs, scale, path):
            start, end, group, hint, critical = box
            kind = f"{group} critical" if critical else group
            lines.append(
                f'<rect class="{kind}" x="{LEFT + start * scale:.1f}" y="{y + 2}" '
                f'width="{max(0.6, (end - start) * scale):.1f}" height="{row - 5}"><title>{escape(hint)}</title></rect>'
            )
    return _svg(top + len(lanes) * row + 4, lines, "When which device runs what")


def hidden_lanes(result: Result) -> int:
    """Devices that run something and are not drawn."""
    used = {(_pool(result, job), result.schedule.slots[job.digest].lane) for job in result.jobs}
    return len(used) - len(_lanes(result))


def _pool(result: Result, job: Planned) -> str:
    if job.stage == "retrieve":
        return "network"
    return "GPU" if job.gpu_seconds else "core"


def _lanes(result: Result) -> list[tuple[str, list[Planned]]]:
    found: dict[tuple[str, int], list[Planned]] = {}
    for job in result.jobs:
        found.setdefault((_pool(result, job), result.schedule.slots[job.digest].lane), []).append(job)
    lanes = []
    for pool in ("network", "GPU", "core"):
        numbers = sorted(lane for name, lane in found if name == pool)[:LANES]
        for lane in numbers:
            name = pool if pool == "network" else f"{pool} {lane + 1}"
            lanes.append((name, found[pool, lane]))
    return lanes


def _boxes(
    result: Result, jobs: Sequence[Planned], scale: float, path: set[str]
) -> list[tuple[float, float, str, str, bool]]:
    """Boxes of one device in order; neighbours too narrow to see are joined."""
    boxes: list[tuple[float, float, str, str, bool]] = []
    counts: list[int] = []
    slots = result.schedule.slots
    for job in sorted(jobs, key=lambda one: slots[one.digest].start):
        slot, group = slots[job.digest], group_of(job.stage)
        hint = f"{job.stage} {job.label}: {duration(slot.end - slot.start)} from {duration(slot.start)}"
        critical = job.digest in path
        if boxes:
            start, end, before, _, was = boxes[-1]
            narrow = (slot.end - slot.start) * scale < PIXEL or (end - start) * scale < PIXEL
            if narrow and before == group and was == critical and (slot.start - end) * scale < PIXEL:
                counts[-1] += 1
                boxes[-1] = (start, slot.end, group, f"{counts[-1]} jobs, {WORDS[group]}", critical)
                continue
        boxes.append((slot.start, slot.end, group, hint, critical))
        counts.append(1)
    return boxes


def _marks(seconds: float) -> list[float]:
    """Round times for the axis."""
    step = float(next((step for step in STEPS if seconds / step <= 8), STEPS[-1]))
    while seconds / step > 8:
        step *= 2
    return [step * i for i in range(int(seconds / step) + 1)]


def _clock(seconds: float) -> str:
    """A round time, as short as it can be said exactly."""
    if seconds < 3600:
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f}" if seconds else "0"
    return f"{seconds / 3600:g} h" if seconds % 86400 or seconds < 172800 else f"{seconds / 86400:g} days"


def _svg(height: float, lines: Sequence[str], label: str) -> str:
    return (
        f'<div class="chart" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(lines)
        + "\n</svg></div>"
    )
