"""Machines to plan for: ``config/hardware/<name>.yaml`` as types, with every mistake named in one line."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from peftbench.config import read_yaml, typed
from peftbench.errors import UserError, did_you_mean

GPUS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver tells what there is, without a library that would have to be loaded."""
Positive = Annotated[float, Meta(gt=0.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]


class Efficiency(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shares of the peak that are assumed to be reached, until records of the device say better."""

    train: Share
    """Of the peak operations, in forward and backward passes."""
    prefill: Share
    """Of the peak operations, in the pass over a prompt."""
    decode: Share
    """Of the memory bandwidth, while tokens are generated one by one."""
    memory: Share = 0.92
    """Of the memory, that one job may fill: the rest is for the driver and for fragments."""


class Overhead(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Times that do not shrink with the model, in seconds."""

    job: NonNegative
    """Start of a job that runs a model: interpreter, imports, driver."""
    light_job: NonNegative
    """Start of any other job."""
    layer_training: NonNegative
    """Forward and backward pass of one layer over one micro-batch, however small it is: launches and Python."""
    layer_step: NonNegative
    """One layer, one pass of generation."""
    example: NonNegative
    """Rendering and tokenising one example."""
    image: NonNegative
    """Decoding and resizing one picture."""
    row: NonNegative
    """Preparing or scoring one row."""


class Hardware(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One machine, or one GPU with its share of a machine. Times in seconds, sizes in bytes."""

    title: str
    kind: Literal["gpu", "cpu"]
    matches: list[str]
    """Beginnings of words in a record's device name by which its measurements count for this hardware; for a CPU
    none: all CPUs count."""
    bf16_flops: Positive
    """Dense, per second."""
    fp32_flops: Positive
    memory: Positive
    """Of one GPU; of a CPU machine, its main memory."""
    memory_bandwidth: Positive
    """Bytes per second."""
    cores: Annotated[int, Meta(ge=1)]
    """Of the host, per GPU; of a CPU machine, all of them."""
    disk_bandwidth: Positive
    """Bytes per second."""
    network_bandwidth: Positive
    """Bytes per second, from where models and data sets are fetched."""
    price_per_hour: NonNegative
    """Of one GPU with its host, or of the CPU machine."""
    watts: NonNegative
    """Of one GPU, or of the CPU machine, under load."""
    efficiency: Efficiency
    overhead: Overhead
    currency: str = "USD"

    def flops(self, precision: str) -> float:
        """Peak operations per second in a precision."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops

    def is_this(self, device: str) -> bool:
        """Whether a record's device is of this kind."""
        if self.kind == "cpu":
            return device == "cpu"
        return any(word.lower() in device.lower() for word in self.matches)


def hardware_names(root: Path) -> list[str]:
    """Names that there are files for."""
    return sorted(path.stem for path in (root / "config/hardware").glob("*.yaml"))


def read_hardware(root: Path, name: str) -> Hardware:
    """The hardware called ``name``; ``UserError`` with file, key and the nearest valid name."""
    known = hardware_names(root)
    if name not in known:
        raise UserError(f"there is no hardware {name!r}{did_you_mean(name, known)} (config/hardware/*.yaml)")
    file = f"config/hardware/{name}.yaml"
    hardware = typed(read_yaml(root / file), Hardware, file)
    if hardware.kind == "gpu" and not hardware.matches:
        raise UserError(f"{file}: matches: name at least one word of the GPU's name, such as A100")
    return hardware


def hardware_of_gpus(root: Path, gpus: Path = GPUS) -> str | None:
    """The first hardware file that matches this machine's GPUs; None where it has none, or one that no file knows."""
    models = []
    for path in sorted(gpus.glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    for name in hardware_names(root) if models else ():
        hardware = read_hardware(root, name)
        if hardware.kind == "gpu" and all(hardware.is_this(model) for model in models):
            return name
    return None
