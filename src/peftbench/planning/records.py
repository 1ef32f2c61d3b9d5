"""Records of finished jobs as measurements: what each took, where; and one line for each that cannot be believed."""

import math
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.store import FAILED, PARTIAL, RECORD

ABSURD_SECONDS = 60 * 86400.0
"""Longer than two months: no job of ours."""
FOLDERS = ("retrieved", "data", "subsets", "models", "exposed", "runs")
"""Folders of the results that hold records; the image store and the caches, with their many files, do not."""
VIEW_FOLDERS = ("tables/.made", "figures/.made", "report/.made")


class _Raw(Struct, kw_only=True):
    """The parts of a record that planning reads."""

    stage: str
    digest: str
    label: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    facts: dict[str, Any]
    provenance: dict[str, Any]
    code: msgspec.Raw


class Measurement(Struct, frozen=True, kw_only=True):
    """What one finished job took. Times in seconds, memory in bytes; 0 where not measured."""

    stage: str
    digest: str
    label: str
    path: str
    """Of its folder, relative to the results."""
    spec: dict[str, Any]
    inputs: dict[str, str]
    facts: dict[str, Any]
    code: bytes
    """As in the file."""
    started: float
    """Seconds since 1970."""
    wall: float
    cpu: float
    gpu: float
    peak: float
    peak_gpu: float
    device: str
    failed: bool

    @property
    def outputs(self) -> Any:
        """Checksums of what it made, where the record has them."""
        return self.facts.get("outputs") or self.facts.get("files")

    @property
    def on_gpu(self) -> bool:
        """Whether it used a GPU."""
        return self.device != "cpu"


class Measurements(Struct, frozen=True, kw_only=True):
    """All that can be believed, and what is to be said of the rest."""

    all: list[Measurement]
    problems: list[str]
    """One line each."""


def read_measurements(folders: Iterable[Path]) -> Measurements:
    """The records under some results folders. Whatever is wrong with one is a line, and the others go on."""
    found: list[Measurement] = []
    problems: list[str] = []
    decoder = msgspec.json.Decoder(_Raw)
    for folder in folders:
        for path in record_files(folder):
            try:
                raw = decoder.decode(path.read_bytes())
                found.append(_measurement(raw, path, folder))
            except OSError as error:
                problems.append(f"{path}: cannot be read ({error.strerror}): left out of the estimate")
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                text = " ".join(str(error).split())[:120]
                problems.append(f"{path}: half written or no record ({text}): left out of the estimate")
            except ValueError as error:
                problems.append(f"{path}: {error}: left out of the estimate")
    found, more = _one_per_digest(found)
    return Measurements(all=found, problems=problems + more)


def record_files(results: Path) -> Iterator[Path]:
    """Records and markers under a results folder, in a fixed order."""
    for name in FOLDERS:
        for folder, names, files in os.walk(results / name):
            names[:] = sorted(
                n for n in names if not n.startswith(PARTIAL) and n not in ("adapter", "epochs")
            )
            if RECORD in files:
                yield Path(folder, RECORD)
                if name != "runs":
                    names.clear()
    for name in VIEW_FOLDERS:
        yield from sorted((results / name).glob(f"*-{'[0-9a-f]' * 16}.json"))


def _measurement(raw: _Raw, path: Path, results: Path) -> Measurement:
    """``ValueError`` with a phrase for times that cannot be."""
    facts, seen = raw.facts, raw.provenance
    wall, cpu = _number(seen, "wall_seconds"), _number(seen, "cpu_seconds")
    gpu = _number(seen, "gpu_seconds", 0.0)
    if not 0.0 < wall < ABSURD_SECONDS:
        raise ValueError(f"wall_seconds {wall:g} cannot be")
    cores = _number(seen, "cpus", 1.0)
    # The clocks differ a little, and helpers of a job may have outlived it.
    if not 0.0 <= cpu <= 1.5 * wall * max(1.0, cores) + 10.0:
        raise ValueError(f"cpu_seconds {cpu:g} cannot be in {wall:g} seconds on {cores:g} cores")
    if gpu < 0.0 or gpu > ABSURD_SECONDS * 64:
        raise ValueError(f"gpu_seconds {gpu:g} cannot be")
    inner = facts.get("seconds")
    if inner is not None and (not isinstance(inner, int | float) or not 0.0 <= inner <= wall * 1.02 + 1.0):
        raise ValueError(f"facts: seconds {inner!r} cannot be in {wall:g} seconds of the job")
    name = path.parent.name if path.name == RECORD else path.stem
    if not name.endswith(raw.digest) or len(raw.digest) != 16:
        raise ValueError(f"it says digest {raw.digest[:20]!r}, its name another")
    return Measurement(
        stage=raw.stage,
        digest=raw.digest,
        label=raw.label,
        path=str(path.parent.relative_to(results)),
        spec=raw.spec,
        inputs=raw.inputs,
        facts=facts,
        code=bytes(raw.code),
        started=_time(seen.get("started")),
        wall=wall,
        cpu=cpu,
        gpu=gpu,
        peak=max(0.0, _number(seen, "peak_memory", 0.0)),
        peak_gpu=max(0.0, _number(seen, "peak_gpu_memory", 0.0)),
        device=str(seen.get("device") or "cpu"),
        failed=FAILED in facts,
    )


def _number(values: dict[str, Any], key: str, default: float | None = None) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _time(text: Any) -> float:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"started is {text!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _one_per_digest(found: list[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Copies of one record count once; two records of one digest that disagree count not at all.

    They disagree where they made different things, or say different times of the same start.
    """
    by_digest: dict[str, list[Measurement]] = {}
    for one in found:
        by_digest.setdefault(one.digest, []).append(one)
    kept, problems = [], []
    for digest, group in by_digest.items():
        distinct = list({(m.started, m.wall, m.cpu, m.gpu): m for m in group}.values())
        made = {repr(m.outputs) for m in group if m.on_gpu == group[0].on_gpu}
        starts = [m.started for m in distinct]
        if len(made) > 1 or len(set(starts)) < len(starts):
            what = "made different things" if len(made) > 1 else "say different times of one start"
            places = " and ".join(m.path for m in group[:2])
            problems.append(f"records of {digest} {what} ({places}): none of them is used")
        else:
            kept.extend(distinct)
    return kept, problems
