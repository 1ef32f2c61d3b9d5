"""Reading the claims file: every mistake named in one line by claim, key and nearest valid name."""

import csv
import re
from pathlib import Path
from typing import Any

import msgspec

from peftbench.claims_types import TESTS, Best, Claim, Claims, Difference, ShareOf, Spread, Test
from peftbench.config import read_yaml, typed
from peftbench.errors import UserError, did_you_mean

FINGERPRINT_EXEMPT = "reads configuration; what it reads stands in the spec in full"
FILE = "config/claims.yaml"
ID = re.compile(r"^[a-z][a-z0-9_]*$")
AXES = (
    "model",
    "dataset",
    "target",
    "method",
    "connector",
    "location",
    "train_size",
    "epoch",
    "vision",
    "measure",
    "setting",
    "familiarity",
)
"""Axes that every claim may name, besides the aliases of the file and what its published table has."""


def read_claims(path: Path, tables: Path | None = None) -> Claims:
    """The claims in ``path``; ``tables``: folder of the published tables, whose names and columns are checked.

    Raises ``UserError`` that names the claim, the key and the nearest valid name.
    """
    data = read_yaml(path) or {}
    if not isinstance(data, dict) or not isinstance(data.get("claims"), dict):
        raise UserError(f"{FILE}: claims: expected a claim under each id")
    claims = {str(name): _claim(str(name), body) for name, body in data["claims"].items()}
    rest = typed(data | {"claims": {}}, Claims, FILE)
    whole = msgspec.structs.replace(rest, claims=claims)
    for name, claim in claims.items():
        _check_axes(whole, name, claim, tables)
    return whole


def test_of(name: str, claim: Claim) -> Test:
    """The test of a claim, typed."""
    where = f"claims.{name}.test"
    given = dict(claim.test)
    statistic = given.pop("statistic", None)
    if statistic is None:
        raise UserError(f"{FILE}: {where}: key 'statistic' is missing; there is {', '.join(TESTS)}")
    if statistic not in TESTS:
        raise UserError(f"{FILE}: {where}.statistic: unknown {statistic!r}{did_you_mean(statistic, TESTS)}")
    for key in ("over", "blocks", "each", "average"):
        if isinstance(given.get(key), str):
            given[key] = [given[key]]
    if isinstance(given.get("target"), dict):
        given["target"] = [given["target"]]
    test: Test = typed(given, TESTS[statistic], FILE, where)
    _check_test(test, where)
    return test


test_of.__test__ = False  # type: ignore[attr-defined]


def _claim(name: str, body: Any) -> Claim:
    if not ID.match(name):
        raise UserError(f"{FILE}: claims.{name}: an id has lower-case letters, digits and underscores only")
    claim = typed(body, Claim, FILE, f"claims.{name}")
    test_of(name, claim)
    if not claim.study and claim.published is None:
        raise UserError(f"{FILE}: claims.{name}: neither study nor published: nothing to test it on")
    return claim


def _check_test(test: Test, where: str) -> None:
    sides = isinstance(test, Difference | ShareOf) or (isinstance(test, Spread) and not test.along)
    if isinstance(test, Difference | ShareOf | Spread) and sides and not (test.left and test.right):
        raise UserError(f"{FILE}: {where}: left and right have to say which runs are compared")
    if isinstance(test, Difference) and test.direction == "same" and test.margin == 0:
        raise UserError(
            f"{FILE}: {where}.margin: 'same' needs a margin above 0: how far apart is still the same"
        )
    if isinstance(test, Spread):
        allowed = ("rising", "falling") if test.along else ("greater", "less")
        if test.direction not in allowed:
            raise UserError(
                f"{FILE}: {where}.direction: {test.direction!r} does not go with it: {' or '.join(allowed)}"
            )
    if isinstance(test, Best) and (not test.over or not test.target):
        raise UserError(
            f"{FILE}: {where}: over and target have to name the alternatives and the best of them"
        )
    if isinstance(test, Best):
        for target in test.target:
            if set(target) != set(test.over):
                raise UserError(
                    f"{FILE}: {where}.target: expected a value of {', '.join(test.over)} and of nothing else"
                )


def _check_axes(claims: Claims, name: str, claim: Claim, tables: Path | None) -> None:
    """Every axis that a claim names exists somewhere."""
    known = {*AXES, *claims.aliases, *(axis for names in claims.aliases.values() for axis in names)}
    if claim.published is not None:
        known |= set(claim.published.fixed)
        if tables is not None:
            columns = _columns(tables, claim.published.table, name)
            value = claim.published.value
            if value and value not in columns:
                raise UserError(
                    f"{FILE}: claims.{name}.published.value: no column {value!r}{did_you_mean(value, columns)}"
                )
            known |= set(columns)
    for where, axis in _axes(test_of(name, claim)):
        if axis not in known:
            raise UserError(
                f"{FILE}: claims.{name}.test.{where}: unknown axis {axis!r}{did_you_mean(axis, known)}"
            )


def _axes(test: Test) -> list[tuple[str, str]]:
    found = [(key, axis) for key in ("where", "blocks", "average", "each") for axis in getattr(test, key)]
    for key in ("left", "right", "over"):
        found += [(key, axis) for axis in getattr(test, key, ())]
    along = getattr(test, "along", "")
    return [*found, ("along", along)] if along else found


def _columns(tables: Path, table: str, name: str) -> list[str]:
    path = tables / f"{table}.csv"
    known = [p.stem for p in tables.glob("*.csv")]
    if table not in known:
        raise UserError(f"{FILE}: claims.{name}.published.table: no {path.name}{did_you_mean(table, known)}")
    rows = _rows(path)
    return list(rows[0]) if rows else []


def _rows(path: Path) -> list[dict[str, str]]:
    """Lines of a published table; ``UserError`` for what is no table, or has lines of other lengths."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows: list[dict[str, str]] = list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"{FILE}: published: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"not valid CSV: {error}"
        raise UserError(f"{FILE}: published: {path}: {what}") from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(
                f"{FILE}: published: {path}, line {number}: more or fewer fields than the header has"
            )
    return rows


def read_tables(claims: Claims, tables: Path) -> dict[str, list[dict[str, str]]]:
    """The published tables that the claims name, one mapping per line, from the folder ``tables``."""
    found = {}
    for claim in claims.claims.values():
        if claim.published is not None and claim.published.table not in found:
            found[claim.published.table] = _rows(tables / f"{claim.published.table}.csv")
    return found
