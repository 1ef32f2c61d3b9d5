"""The view as a screen, for terminals and for ``--once``, and as short lines, for files."""

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from peftbench.planning.text import duration
from peftbench.watch.snapshot import Failure, View

RUNNING_LISTED = 20
FAILURES_LISTED = 8


def headline(view: View) -> str:
    """How far it is, in one line."""
    text = f"{view.done:,} of {view.total:,} jobs done, {len(view.running)} at work"
    if view.failed:
        text += f", {view.failed} failed"
    return text


def costs(view: View) -> str:
    """What was used and what is left, in one line."""
    unit = "GPU-hours" if view.on_gpu else "job-hours"
    text = f"{hours(view.used)} {unit} used"
    if view.left_known and view.done + view.failed < view.total:
        text += f", about {hours(view.left)} left"
        if view.at_work:
            text += f"; done in about {duration(view.wall_left)}"
    return text


def hours(seconds: float) -> str:
    """Hours with as many digits as tell something."""
    value = seconds / 3600
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 1
        else f"{value:.2g}"
        if value >= 0.001
        else "0"
    )


def line(view: View) -> str:
    """All of it in one line, with the time of day."""
    return f"{time.strftime('%H:%M:%S')}  {headline(view)}; {costs(view)}"


def failure_lines(failure: Failure) -> Iterator[str]:
    """A failed job, with the end of its log."""
    yield f"failed: {failure.title}: {failure.reason}"
    for text in failure.tail:
        yield f"    | {text}"
    if failure.log:
        yield f"    log: {failure.log}"


def screen(view: View) -> RenderableType:
    """All there is to see."""
    parts: list[RenderableType] = [_head(view), _stages(view)]
    if view.running:
        parts += [Text(), _running(view)]
    for failure in view.failures[-FAILURES_LISTED:]:
        first, *rest = failure_lines(failure)
        parts += [Text(), Text(first, style="red"), *(Text(text, style="dim") for text in rest)]
    if len(view.failures) > FAILURES_LISTED:
        parts.append(
            Text(f"and {len(view.failures) - FAILURES_LISTED} more failed: see {view.place}/.failed")
        )
    return Group(*parts)


def _head(view: View) -> Text:
    state = f"for {duration(view.elapsed)}" if view.at_work else "no snakemake is at work"
    text = Text(f"{view.place}: ")
    text.append(headline(view), style="bold")
    text.append(f"; {state}\n{costs(view)}\n")
    return text


def _stages(view: View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "", "done", "of", "at work", "failed"):
        table.add_column(name, justify="right" if name in ("done", "of", "at work", "failed") else "left")
    for stage in view.stages:
        bar = ProgressBar(
            total=stage.total, completed=stage.done, width=24, complete_style="green", finished_style="green"
        )
        failed = Text(str(stage.failed) if stage.failed else "", style="red")
        at_work = str(stage.running) if stage.running else ""
        table.add_row(stage.name, bar, f"{stage.done:,}", f"{stage.total:,}", at_work, failed)
    return table


def _running(view: View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("at work", "", "", "for", "left", ""):
        table.add_column(
            name, no_wrap=name != "at work", overflow="fold" if name == "at work" else "ellipsis"
        )
    for job in view.running[:RUNNING_LISTED]:
        left = duration(job.left) if job.left is not None else ""
        table.add_row(
            Text(job.title),
            job.steps,
            Text(job.note),
            duration(job.elapsed),
            left,
            Text(job.who, style="dim"),
        )
    if len(view.running) > RUNNING_LISTED:
        table.add_row(f"and {len(view.running) - RUNNING_LISTED} more")
    return table
