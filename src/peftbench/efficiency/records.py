"""Peak memory and time per step of real runs, from their records: what no formula gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from peftbench.store import RECORD, Record, read_record


class RunCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Means over runs of one setting, the peak of peaks for memory. None where no record says it."""

    runs: int
    devices: list[str]
    """The one that these runs were on; times on different devices are not to be averaged."""
    memory: int | None
    """Peak in bytes: of the GPU where one was used, else of the process."""
    on_gpu: bool
    step_seconds: float | None
    """Per optimiser step, data loading included."""
    examples_per_second: float | None
    tokens_per_second: float | None
    """Padding not counted."""
    answers_per_second: float | None = None
    """Test examples answered per second."""
    left_out: int = 0
    """Runs on other devices than the most common one: their times and memory say something else."""


def run_costs(folders: Sequence[Path], predictions: Sequence[Path] = ()) -> RunCosts | None:
    """What training and answering cost, from the records of these folders; None where no run has one.

    Folders without a record (failed, or not run yet) are passed over. Of runs on several devices those on the most
    common one count.
    """
    trained = [record for record in _records(folders) if "steps" in record.facts]
    if not trained:
        return None
    device, count = Counter(map(_device, trained)).most_common(1)[0]
    records = [record for record in trained if _device(record) == device]
    gpu = [int(record.provenance.get("peak_gpu_memory") or 0) for record in records]
    process = [int(record.provenance.get("peak_memory") or 0) for record in records]
    peak = max(gpu) or max(process)
    answered = [record for record in _records(predictions) if _device(record) == device]
    return RunCosts(
        runs=count,
        devices=[device],
        memory=peak or None,
        on_gpu=any(gpu),
        step_seconds=_mean(record.facts["seconds"] / record.facts["steps"] for record in records),
        examples_per_second=_mean(_throughput(record, "samples_per_s") for record in records),
        tokens_per_second=_mean(_throughput(record, "tokens_per_s") for record in records),
        answers_per_second=_mean(_throughput(record, "samples_per_s") for record in answered),
        left_out=len(trained) - count,
    )


def _records(folders: Sequence[Path]) -> list[Record]:
    return [read_record(folder / RECORD) for folder in folders if (folder / RECORD).exists()]


def _device(record: Record) -> str:
    name = str(record.provenance.get("device") or "cpu")
    return str(record.provenance.get("cpu") or name) if name == "cpu" else name


def _throughput(record: Record, name: str) -> float | None:
    value: Any = record.facts.get("throughput", {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
