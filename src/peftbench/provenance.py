"""Where, with what and at what cost a result was made: facts for its record, never part of its identity."""

import datetime
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peftbench

FINGERPRINT_EXEMPT = "observes results; does not compute them"
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "polars",
)
"""Packages whose versions every record names."""


class Meter:
    """Measures a job from its creation on: wall, CPU and GPU seconds, peak memory."""

    def __init__(self) -> None:
        self._started = datetime.datetime.now(datetime.UTC)
        self._wall = time.monotonic()
        self._cpu = _cpu_seconds()

    def read(self, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
        """All that is known at this moment, as plain data. Seconds are seconds, memory is in bytes."""
        wall = time.monotonic() - self._wall
        device = _device()
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "host": platform.node(),
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": device["name"],
            "wall_seconds": round(wall, 3),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 3),
            "gpu_seconds": round(wall * device["count"], 3),
            "peak_memory": _peak_memory(),
            "peak_gpu_memory": device["peak_memory"],
            "python": platform.python_version(),
            "peftbench": peftbench.__version__,
            "versions": versions(packages),
            "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions, without those that are missing; nothing is imported."""
    import importlib.metadata

    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * unit


def used_gpus() -> int:
    """How many GPUs this process uses."""
    count: int = _device()["count"]
    return count


def _device() -> dict[str, Any]:
    """The GPUs that this process really used; asking must not load torch or start CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {"name": "cpu", "count": 0, "peak_memory": 0}
    peaks = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    used = [i for i, peak in enumerate(peaks) if peak]
    name = torch.cuda.get_device_name(used[0]) if used else "cpu"
    return {"name": name, "count": len(used), "peak_memory": max(peaks, default=0)}


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open() as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
