"""Peak memory and time per step of real runs, from their records: what no formula gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from peftbench.errors import UserError
from peftbench.store import RECORD, Record, read_record


class RunCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Means over runs of one setting, the peak of peaks for memory. None where no record says it."""

    runs: int
    devices: list[str]
    """All different ones; times on different devices are not to be averaged."""
    memory: int | None
    """Peak in bytes: of the GPU where one was used, else of the process."""
    on_gpu: bool
    step_seconds: float | None
    """Per optimiser step, data loading included."""
    examples_per_second: float | None
    tokens_per_second: float | None
    """Padding not counted."""


def run_costs(folders: Sequence[Path]) -> RunCosts | None:
    """What training cost, from the records of these run folders; None where none of them has one.

    Folders without a record (failed, or not run yet) are passed over. Raises ``UserError`` for runs on
    different devices.
    """
    records = [read_record(folder / RECORD) for folder in folders if (folder / RECORD).exists()]
    records = [record for record in records if "steps" in record.facts]
    if not records:
        return None
    devices = sorted({_device(record) for record in records})
    if len(devices) > 1:
        raise UserError(f"efficiency: runs on {' and '.join(devices)} cannot be averaged: compare one device")
    gpu = [int(record.provenance.get("peak_gpu_memory") or 0) for record in records]
    process = [int(record.provenance.get("peak_memory") or 0) for record in records]
    peak = max(gpu) or max(process)
    return RunCosts(
        runs=len(records),
        devices=devices,
        memory=peak or None,
        on_gpu=any(gpu),
        step_seconds=_mean(record.facts["seconds"] / record.facts["steps"] for record in records),
        examples_per_second=_mean(_throughput(record, "samples_per_s") for record in records),
        tokens_per_second=_mean(_throughput(record, "tokens_per_s") for record in records),
    )


def _device(record: Record) -> str:
    name = str(record.provenance.get("device") or "cpu")
    return str(record.provenance.get("cpu") or name) if name == "cpu" else name


def _throughput(record: Record, name: str) -> float | None:
    value: Any = record.facts.get("throughput", {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
