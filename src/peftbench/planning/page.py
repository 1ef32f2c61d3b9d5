"""The plan as one HTML page that opens from disk: totals, charts, tables."""

from pathlib import Path

import peftbench
from peftbench.planning.charts import bars, gantt, group_of, hidden_lanes, legend
from peftbench.planning.text import HEAD, duration, error_lines, hours, row, size, tables
from peftbench.planning.totals import REASONS, Result

PATH_SHOWN = 12
"""Jobs of the critical path that are named."""


def to_html(result: Result) -> str:
    """The page's text."""
    import jinja2
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    css = (Path(peftbench.__file__).parent / "analysis/table.css").read_text(encoding="utf-8")
    on_gpu = result.hardware.kind == "gpu"
    blocks = []
    for heading, sums in tables(result):
        rows = [row(name, one) for name, one in sums.items()]
        if heading == "stage":
            rows.append(row("total", result.total))
        columns = [i for i in range(len(HEAD)) if on_gpu or HEAD[i] not in ("GPU-hours", "GPU memory")]
        blocks.append(
            {
                "title": f"By {heading}",
                "head": [HEAD[i] for i in columns],
                "rows": [[cells[i] for i in columns] for cells in rows],
                "total": heading == "stage",
            }
        )
    by_digest = {job.digest: job for job in result.jobs}
    path = [by_digest[digest] for digest in result.path]
    return environment.get_template("page.html.jinja").render(
        result=result,
        css=Markup(css),
        on_gpu=on_gpu,
        device="GPU" if on_gpu else "machine",
        tiles=_tiles(result),
        bars=Markup(bars(result)),
        gantt=Markup(gantt(result)),
        legend=Markup(legend(group_of(job.stage) for job in result.jobs)),
        hidden=hidden_lanes(result) if result.jobs else 0,
        blocks=blocks,
        walls=[(n, duration(wall)) for n, wall in result.walls.items()],
        reasons=[(REASONS[name], count) for name, count in result.reasons.items()],
        path=[(f"{job.stage} {job.label}", duration(job.seconds)) for job in path[:PATH_SHOWN]],
        path_time=duration(result.path_seconds),
        errors=error_lines(result),
        micro=[
            (one.model, one.method, one.connector, one.micro_batch or "none", size(one.memory))
            for one in result.micro_batches
        ],
        room=size(result.hardware.memory),
    )


def _tiles(result: Result) -> list[tuple[str, str, str]]:
    """Number, what it is, what to know about it."""
    total, kind = result.total, "GPU" if result.hardware.kind == "gpu" else "machine"
    time = f"{hours(total.gpu_hours)} h" if kind == "GPU" else duration(total.cpu_hours * 3600)
    unknown = len(result.unknown_downloads)
    more = f"and {unknown} of unknown size" if unknown else "known in full"
    tiles = [
        (f"{total.run:,}", "jobs to run", f"{total.reused:,} reused"),
        (time, f"{'GPU' if kind == 'GPU' else 'CPU'} time", f"{total.flops / 1e18:,.3g} EFLOPs"),
        (duration(result.schedule.seconds), f"on {result.gpus} {kind}{'s' if result.gpus > 1 else ''}",
         f"never below {duration(result.path_seconds)}"),
        (f"{result.cost:,.{0 if result.cost >= 100 else 2}f}", f"{result.hardware.currency}",
         f"{result.price:g} per {kind}-hour, {result.energy:,.1f} kWh"),
        (size(total.disk), "on disk", f"largest job {size(max((j.disk for j in result.jobs), default=0.0))}"),
        (size(result.download), "to fetch", more if any(j.stage == "retrieve" for j in result.jobs) else "nothing"),
    ]  # fmt: skip
    if kind == "GPU":
        tiles.append((size(total.gpu_memory), "peak GPU memory", f"of {size(result.hardware.memory)}"))
    return tiles
