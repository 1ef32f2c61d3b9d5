"""What each method is and what it cost, and where the results come from, read from their records."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from msgspec import Struct

from peftbench.analysis.lines import Line, record_in
from peftbench.analysis.style import method_summary, method_title
from peftbench.store import Record


class Cost(Struct, frozen=True, kw_only=True):
    """One method in one variant, on one model: means over its runs. None where no record says it."""

    model: str
    method: str
    variant: str
    position: int
    runs: int
    own: int | None
    """Trainable parameters that the method added."""
    connector: int | None
    """Trainable parameters of the connector."""
    share: float | None
    """Trainable parameters in percent of all, the method's own included."""
    seconds: float | None
    """Seconds of training, from the first step to the last."""
    samples: float | None
    """Training examples per second."""
    answers: float | None
    """Test examples answered per second."""
    memory: float | None
    """Peak memory of training in GiB: of the GPU where one was used, else of the process."""


def costs(lines: Sequence[Line], titles: Mapping[str, str]) -> list[Cost]:
    """One entry per model, method and variant, in the order of the study."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if not line.untuned:
            groups.setdefault((line.outcome.cell.model, line.method, line.variant), []).append(line)
    found = []
    for (model, method, variant), group in groups.items():
        trained = [record for line in group if (record := record_in(line.run)) is not None]
        answered = [record for line in group if (record := record_in(line.predictions)) is not None]
        counts: dict[str, int] = next((r.facts["trainable"] for r in trained if "trainable" in r.facts), {})
        totals: dict[str, int] = next((r.facts["parameters"] for r in trained if "parameters" in r.facts), {})
        found.append(
            Cost(
                model=titles[model],
                method=method_title(method),
                variant=variant,
                position=group[0].position,
                runs=len(trained),
                own=counts.get("method"),
                connector=counts.get("connector"),
                share=_share(counts, totals),
                seconds=_mean(trained, "seconds"),
                samples=_mean(trained, "throughput", "samples_per_s"),
                answers=_mean(answered, "throughput", "samples_per_s"),
                memory=_memory(trained),
            )
        )
    return found


def _share(trainable: Mapping[str, int], totals: Mapping[str, int]) -> float | None:
    everything = sum(totals.values()) + (0 if "method" in totals else trainable.get("method", 0))
    return 100 * sum(trainable.values()) / everything if totals and everything else None


def _mean(records: Sequence[Record], *path: str) -> float | None:
    values = []
    for record in records:
        value: Any = record.facts
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            values.append(float(value))
    return fmean(values) if values else None


def _memory(records: Sequence[Record]) -> float | None:
    peaks = [r.provenance.get("peak_gpu_memory") or r.provenance.get("peak_memory") or 0 for r in records]
    return max(peaks) / 2**30 if any(peaks) else None


def summaries(lines: Sequence[Line]) -> list[tuple[str, int, str]]:
    """Title, colour position and one sentence for each method that has one."""
    methods = {line.method: line.position for line in lines if not line.untuned}
    found = [(method_title(name), position, method_summary(name)) for name, position in methods.items()]
    return [entry for entry in found if entry[2]]


class Origin(Struct, frozen=True, kw_only=True):
    """Where the results were made: every value with the number of records that name it."""

    facts: list[tuple[str, list[tuple[str, int]]]]
    runs: list[tuple[str, str, str, str]]
    """Label of each cell, and the digests of its run, its answers and its scores."""


def origin(lines: Sequence[Line], titles: Mapping[str, str], labels: Mapping[str, str]) -> Origin:
    """Hosts, devices and versions of all records, and the digests of every cell."""
    counted: dict[str, dict[str, int]] = {}
    seen: set[str] = set()
    runs = []
    for line in lines:
        cell = line.outcome.cell
        digests = []
        for folder in (line.run, line.predictions, line.scores):
            record = record_in(folder)
            digests.append(record.digest if record else "–")
            if record and record.digest not in seen:
                seen.add(record.digest)
                _count(counted, record.provenance)
        parts = [titles[cell.model], labels[cell.dataset], method_title(line.method), line.variant]
        parts.append(f"seed {cell.seed}")
        runs.append((" / ".join(filter(None, parts)), *digests))
    facts = [(name, sorted(values.items())) for name, values in sorted(counted.items())]
    return Origin(facts=facts, runs=runs)  # type: ignore[arg-type]


def _count(counted: dict[str, dict[str, int]], provenance: Mapping[str, Any]) -> None:
    named = {name: provenance.get(name) for name in ("host", "cpu", "device", "python", "peftbench")}
    named |= {f"{name} (version)": version for name, version in provenance.get("versions", {}).items()}
    for name, value in named.items():
        if value:
            values = counted.setdefault(name, {})
            values[str(value)] = values.get(str(value), 0) + 1
