"""The plan as text, JSON and CSV."""

import csv
import io
from collections.abc import Mapping
from typing import Any

import msgspec

from peftbench.planning.totals import REASONS, Planned, Result, Sums

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(value: float) -> str:
    """Bytes for people, decimal units."""
    unit = 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if value >= 9.95 or unit == 0 else f"{value:.1f} {UNITS[unit]}"


def hours(value: float) -> str:
    """Hours for people."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 0.0005 else "0"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 3 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


HEAD = ("", "run", "reused", "GPU-hours", "CPU-hours", "PFLOPs", "GPU memory", "disk")


def row(name: str, sums: Sums) -> tuple[str, ...]:
    """One line of the tables."""
    return (
        name,
        f"{sums.run:,}",
        f"{sums.reused:,}",
        hours(sums.gpu_hours),
        hours(sums.cpu_hours),
        f"{sums.flops / 1e15:,.0f}"
        if sums.flops >= 1e16
        else f"{sums.flops / 1e15:.3g}"
        if sums.flops
        else "",
        size(sums.gpu_memory) if sums.gpu_memory else "",
        size(sums.disk),
    )


def tables(result: Result) -> list[tuple[str, Mapping[str, Sums]]]:
    """Heading and sums of each table."""
    found = [("stage", result.stages), ("model", result.models), ("method", result.methods)]
    return [*found, ("study (each job where it is first asked for)", result.studies)]


def error_lines(result: Result) -> list[str]:
    """The plan's own errors, stages in order, time and CPU time and memory in one line each."""
    stages = list(dict.fromkeys(error.stage for error in result.errors))
    lines = []
    for stage in stages:
        of = {error.target: error for error in result.errors if error.stage == stage}
        wall = of.get("wall")
        if wall is None:
            continue
        text = (
            f"{stage}: {wall.records} records, median error {wall.median:.0f} % (total {wall.total:+.0f} %)"
        )
        if "cpu" in of:
            text += f", of CPU time {of['cpu'].median:.0f} % ({of['cpu'].total:+.0f} %)"
        if "peak" in of:
            text += f", of peak memory {of['peak'].median:.0f} %"
        lines.append(text)
    return lines


def summary(result: Result, short: bool = False) -> list[str]:
    """The plan for a terminal; ``short``: the totals alone, for the end of a dry-run."""
    device = f"{result.hardware.title} ({result.hardware_name})"
    lines = [f"Plan of {result.title} on {device}"]
    shown = [("stage", result.stages)] if short else tables(result)
    blocks = []
    for heading, sums in shown:
        rows = [(heading.split(" (")[0], *HEAD[1:]), *(row(name, one) for name, one in sums.items())]
        if heading == "stage":
            rows.append(row("total", result.total))
        blocks.append(rows)
    widths = [max(len(cells[i]) for rows in blocks for cells in rows) for i in range(len(HEAD))]
    for rows in blocks:
        lines.append("")
        for cells in rows:
            texts = [cells[0].ljust(widths[0])]
            texts += [text.rjust(width) for text, width in zip(cells[1:], widths[1:], strict=True)]
            lines.append("  ".join(texts).rstrip())
    lines += ["", *facts(result, short)]
    return lines


def facts(result: Result, short: bool = False) -> list[str]:
    """What is to be said besides the tables."""
    total, lines = result.total, []
    if not total.run:
        return [f"nothing to run; {total.reused:,} results are there", *_asides(result)]
    reasons = ", ".join(f"{count:,} {REASONS[reason]}" for reason, count in result.reasons.items())
    lines.append(f"{total.run:,} jobs to run ({reasons}), {total.reused:,} reused")
    kind = "GPU" if result.hardware.kind == "gpu" else "machine"
    walls = "; ".join(
        f"{n} {kind}{'s' if n > 1 else ''} {duration(wall)}" for n, wall in result.walls.items()
    )
    lines.append(f"wall time: {walls}")
    path = [job for digest in result.path for job in result.jobs if job.digest == digest]
    names = " > ".join(f"{job.stage} {job.label}".strip() for job in path)
    lines.append(f"critical path {duration(result.path_seconds)}: {names}")
    price = f"{result.price:g} {result.hardware.currency} per {kind}-hour"
    lines.append(f"cost {result.cost:,.2f} {result.hardware.currency} at {price}; {result.energy:,.1f} kWh")
    download = f"download {size(result.download)}"
    if result.unknown_downloads:
        download += f", and {len(result.unknown_downloads)} whose size is not known"
    if any(job.stage == "retrieve" for job in result.jobs):
        lines.append(download)
    if result.micro_batches and not short:
        lines.append(f"largest micro-batch that fits {size(result.hardware.memory)}, with its peak:")
        for one in result.micro_batches:
            fits = f"{one.micro_batch:4d}" if one.micro_batch else "none"
            lines.append(
                f"  {fits}  {size(one.memory):>7}  {one.model} {one.method}, connector {one.connector}"
            )
    return lines + _asides(result)


def _asides(result: Result) -> list[str]:
    lines = []
    errors = error_lines(result)
    if errors:
        lines.append("error of this estimate, each record predicted from the others:")
        lines += [f"  {line}" for line in errors]
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"warning: {problem}" for problem in result.problems]
    return lines


def plain(result: Result) -> dict[str, Any]:
    """The plan as plain data for JSON."""
    jobs = []
    on_path = set(result.path)
    for job in result.jobs:
        slot = result.schedule.slots[job.digest]
        where = {"start": slot.start, "end": slot.end, "lane": slot.lane, "critical": job.digest in on_path}
        jobs.append(msgspec.to_builtins(job) | where)

    def sums(table: Mapping[str, Sums]) -> dict[str, Any]:
        return {name: msgspec.to_builtins(one) for name, one in table.items()}

    return {
        "title": result.title,
        "hardware": result.hardware_name,
        "gpus": result.gpus,
        "price_per_hour": result.price,
        "currency": result.hardware.currency,
        "total": msgspec.to_builtins(result.total),
        "cost": result.cost,
        "energy_kwh": result.energy,
        "wall_seconds": {str(n): wall for n, wall in result.walls.items()},
        "critical_path": result.path,
        "critical_path_seconds": result.path_seconds,
        "download": result.download,
        "unknown_downloads": result.unknown_downloads,
        "reasons": result.reasons,
        "stages": sums(result.stages),
        "models": sums(result.models),
        "methods": sums(result.methods),
        "studies": sums(result.studies),
        "micro_batches": msgspec.to_builtins(result.micro_batches),
        "errors": msgspec.to_builtins(result.errors),
        "notes": result.notes,
        "problems": result.problems,
        "jobs": jobs,
    }


def to_json(result: Result) -> str:
    """The plan as JSON text."""
    return msgspec.json.format(msgspec.json.encode(plain(result)), indent=1).decode() + "\n"


def to_csv(result: Result) -> str:
    """One line per job that runs."""
    names = [*Planned.__struct_fields__, "start", "end", "lane", "critical"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for job in plain(result)["jobs"]:
        writer.writerow(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in job.items()}
        )
    return stream.getvalue()
