"""Whether a result that was made again is the one that is stored: every file, every fact but those of time.

On the CPU results must agree bit for bit. GPU kernels may add in any order, so results of a GPU may differ by a
stated tolerance: tensors by the norm of their difference relative to their own, tables by the share of rows in
which anything but a number differs, and numbers relatively.
"""

import csv
import io
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench.canonical import file_sha256
from peftbench.errors import UserError
from peftbench.reruns.differences import flatten, shown
from peftbench.reruns.records import digest_in
from peftbench.store import RECORD, Record

GPU_TOLERANCE = 0.01
EXECUTION_FACTS = (
    "seconds",
    "throughput",
    "features",
    "micro_batch",
    "halved",
    "processes",
    "parallel",
    "zero_stage",
    "restarts",
)
"""Facts of how a job ran, not of what came out."""
SUMS = ("outputs", "files")
"""Facts that hold sums of files; the files themselves are compared."""
TIMES = ("seconds",)
"""Columns of CSV files that hold times."""


def own_files(folder: Path) -> dict[str, Path]:
    """The files of one result: not its record, and nothing of the results that lie inside it."""
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name == RECORD or entry.name.startswith(".") or (entry.is_dir() and digest_in(entry.name)):
            continue
        inside = sorted(p for p in entry.rglob("*") if p.is_file()) if entry.is_dir() else [entry]
        found |= {str(path.relative_to(folder)): path for path in inside}
    return found


def check_sums(record: Record, folder: Path) -> None:
    """``UserError`` where a stored file is not the one that its record names."""
    for name, sha256 in record.facts.get("outputs", {}).items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing, though its record names it: delete {folder} and run again")
        if file_sha256(path) != sha256:
            raise UserError(f"{path}: not the file that its record names: delete {folder} and run again")


def differences(
    stored: Record, place: Path, again: Record, new_place: Path, tolerance: float = 0.0
) -> Iterator[str]:
    """Each file or fact that differs, in words; lazily, so that the first is found soon."""
    before, now = own_files(place), own_files(new_place)
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"{name}: no longer made"
        elif name not in before:
            yield f"{name}: made now, not before"
        else:
            found = _file(before[name], now[name], tolerance)
            if found:
                yield f"{name}: {found}"
    yield from _facts(stored.facts, again.facts, tolerance)


def _facts(before: dict[str, Any], now: dict[str, Any], tolerance: float) -> Iterator[str]:
    one, two = (
        flatten({key: value for key, value in facts.items() if key not in (*EXECUTION_FACTS, *SUMS)})
        for facts in (before, now)
    )
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two or not _close(one[name], two[name], tolerance):
            yield f"fact {name}: was {shown(one.get(name))}, is {shown(two.get(name))}"


def _close(one: Any, two: Any, tolerance: float) -> bool:
    if type(one) is not type(two):
        return False
    if isinstance(one, list):
        return len(one) == len(two) and all(_close(a, b, tolerance) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and tolerance:
        return math.isclose(one, two, rel_tol=tolerance, abs_tol=1e-12)
    return bool(one == two)


def _file(one: Path, two: Path, tolerance: float) -> str:
    """What differs between two files; empty where nothing does."""
    if one.stat().st_size == two.stat().st_size and file_sha256(one) == file_sha256(two):
        return ""
    if one.suffix == ".csv":
        return _csv(one.read_text(encoding="utf-8"), two.read_text(encoding="utf-8"), tolerance)
    if tolerance and one.suffix == ".safetensors":
        return _tensors(one, two, tolerance)
    if tolerance and one.suffix == ".parquet":
        return _parquet(one, two, tolerance)
    if one.suffix == ".safetensors":
        return _first_tensor(one, two)
    if one.suffix == ".json" and json.loads(one.read_bytes()) == json.loads(two.read_bytes()):
        return ""
    return "other bytes"


def _csv(one: str, two: str, tolerance: float) -> str:
    """Line by line; columns of times do not count."""
    tables = [list(csv.DictReader(io.StringIO(text))) for text in (one, two)]
    if len(tables[0]) != len(tables[1]):
        return f"{len(tables[1])} rows, was {len(tables[0])}"
    for number, (was, now) in enumerate(zip(*tables, strict=True), start=1):
        if was.keys() != now.keys():
            return "other columns"
        for column in was:
            if (
                column not in TIMES
                and was[column] != now[column]
                and not _near(was[column], now[column], tolerance)
            ):
                return f"row {number}, {column}: was {was[column]}, is {now[column]}"
    return ""


def _near(one: str, two: str, tolerance: float) -> bool:
    try:
        return bool(tolerance) and math.isclose(float(one), float(two), rel_tol=tolerance, abs_tol=1e-12)
    except (TypeError, ValueError):
        return False


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's table of tensors, and where their bytes begin."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        table: dict[str, Any] = json.loads(stream.read(length))
    return table, 8 + length


def _first_tensor(one: Path, two: Path) -> str:
    """The first tensor whose bytes differ, so that a refusal says where to look."""
    (before, start), (now, new_start) = _header(one), _header(two)
    names = [name for name in before if name != "__metadata__"]
    if names != [name for name in now if name != "__metadata__"]:
        return "other tensors"
    with one.open("rb") as first, two.open("rb") as second:
        for name in names:
            parts = []
            for stream, table, at in ((first, before, start), (second, now, new_start)):
                begin, end = table[name]["data_offsets"]
                stream.seek(at + begin)
                parts.append((table[name]["dtype"], table[name]["shape"], stream.read(end - begin)))
            if parts[0] != parts[1]:
                return f"tensor {name} differs"
    return "" if before.get("__metadata__") == now.get("__metadata__") else "other metadata"


def _tensors(one: Path, two: Path, tolerance: float) -> str:
    from safetensors.torch import load_file

    before, now = load_file(one), load_file(two)
    if before.keys() != now.keys():
        return "other tensors"
    for name, tensor in before.items():
        if tensor.shape != now[name].shape or tensor.dtype != now[name].dtype:
            return f"tensor {name}: other shape or type"
        was, difference = tensor.double(), now[name].double() - tensor.double()
        relative = float(difference.norm()) / max(float(was.norm()), 1e-12)
        if not relative <= tolerance:
            return f"tensor {name}: differs by {relative:.2g} of its norm, more than {tolerance:g}"
    return ""


def _parquet(one: Path, two: Path, tolerance: float) -> str:
    import polars as pl

    before, now = pl.read_parquet(one), pl.read_parquet(two)
    if before.schema != now.schema or len(before) != len(now):
        return "other columns" if before.schema != now.schema else f"{len(now)} rows, was {len(before)}"
    rows = zip(before.iter_rows(), now.iter_rows(), strict=True)
    other = sum(not all(_close(a, b, tolerance) for a, b in zip(was, is_, strict=True)) for was, is_ in rows)
    share = other / max(1, len(before))
    return f"{other} of {len(before)} rows differ, more than {tolerance:.1%}" if share > tolerance else ""
