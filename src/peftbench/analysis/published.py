"""The published value that stands beside a cell: found by its coordinates, never by its place in a table."""

from collections.abc import Mapping
from typing import Any

from peftbench.errors import UserError
from peftbench.views import TabulateSpec

VALUES = ("score", "mean", "value")
"""Columns that hold the value, the first of them that a file has."""
BESIDE = ("std", "stderr", "n")
"""Columns that say something about the value and are no coordinate."""
REQUIRED = ("model", "method", "dataset")
"""A file without one of these cannot say whose its values are, so it stands beside nothing."""


def published_value(
    spec: TabulateSpec, cell: Mapping[str, Any], stands_for: Mapping[str, Mapping[str, str]]
) -> float | None:
    """The value of the one published row with the coordinates of ``cell``; None where there is none.

    The model and the data sets of a row are what ours ``stands_for`` (axis -> our name -> theirs); every further
    column of the file that is an axis of the cell has to agree. Raises ``UserError`` where several rows fit, or
    where a value is no number.
    """
    found: list[str] = []
    for row in spec.published_rows:
        column = next((name for name in VALUES if row.get(name)), None)
        if column is not None and _same(row, column, cell, stands_for):
            found.append(row[column])
    if not found:
        return None
    where = f"paper/tables/{spec.published}.csv"
    if len(found) > 1:
        point = ", ".join(f"{name} {cell[name]}" for name in REQUIRED)
        raise UserError(
            f"{where}: {len(found)} rows for {point}: name the axis that tells them apart in the study"
        )
    try:
        return float(found[0])
    except ValueError:
        raise UserError(f"{where}: {found[0]!r} is no number") from None


def _same(
    row: Mapping[str, str], column: str, cell: Mapping[str, Any], stands_for: Mapping[str, Mapping[str, str]]
) -> bool:
    if any(not row.get(name) for name in REQUIRED):
        return False
    for name, published in row.items():
        if name == column or name in BESIDE or name not in cell:
            continue
        ours = stands_for[name].get(cell[name], "") if name in stands_for else cell[name]
        if not _equal(ours, published):
            return False
    return True


def _equal(ours: Any, published: str) -> bool:
    if str(ours) == published:
        return True
    if isinstance(ours, bool) or not isinstance(ours, int | float):
        return False
    number = published.removesuffix("k")
    try:
        return float(number) * (1000 if number != published else 1) == float(ours)
    except ValueError:
        return False
