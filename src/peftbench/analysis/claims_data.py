"""The numbers that a claim is about, ours and the published ones, in one form: entries with coordinates."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from peftbench.analysis.outcomes import Outcome, coordinates, read_outcomes
from peftbench.analysis.published import VALUES
from peftbench.analysis.statistics.items import Items, over_seeds, read_items
from peftbench.analysis.statistics.result import NotComputable
from peftbench.analysis.style import UNTUNED
from peftbench.claims_types import Claim, Claims, Select
from peftbench.errors import UserError
from peftbench.store import RECORD, read_record
from peftbench.views import TabulateSpec

Level = str | float
AVERAGES = ("avg", "average")
"""Rows of a published table that only repeat the others."""
TEST_SET = ("target", "dataset")
"""The axes that say which test items an entry is over, the first one that it has."""


class Entry(Struct, frozen=True, kw_only=True):
    """One configuration: a number per seed, or why there is none."""

    coords: dict[str, Level]
    stands_for: dict[str, str] = {}
    """Axis -> what its value is or imitates in the paper's tables."""
    values: list[float] = []
    spread: float | None = None
    """Standard deviation over seeds; None: unknown."""
    seeds: int = 1
    missing: list[str] = []
    """One reason per run without a number."""
    share_items: int = 0
    """Published: test items behind the value; 0: unknown."""
    scale: float = 100.0
    outcomes: list[Outcome] = []
    """Ours: the runs."""

    @property
    def value(self) -> float | None:
        """Mean over seeds; None where a run is missing."""
        return sum(self.values) / len(self.values) if self.values and not self.missing else None

    @property
    def test_set(self) -> Level:
        """Which test items it is over."""
        return next((self.coords[axis] for axis in TEST_SET if axis in self.coords), "")


class Data(Struct, frozen=True, kw_only=True):
    """All entries of one source."""

    source: str
    """``ours`` or ``paper``."""
    entries: list[Entry]
    higher_is_better: bool
    items: Callable[[Entry], Items | NotComputable] | None = None
    """Reads the scores per test item of an entry; None for published numbers."""
    hours: Callable[[Sequence[Entry]], tuple[float, str] | None] | None = None
    """What one more seed of some entries costs, with its unit."""


def level(value: Any, levels: Mapping[str, Any] | None = None) -> Level:
    """A coordinate in one spelling: 1k and 1000 are the same, and 2e-4 is a number."""
    value = (levels or {}).get(str(value), value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return float(value)
    text = str(value)
    match = re.fullmatch(r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(k?)", text)
    return float(match[1]) * (1000 if match[2] else 1) if match else text


def order(value: Level) -> tuple[int, float, str]:
    """Key that sorts levels: numbers, then words ("full" is the most)."""
    return (1, 0.0, value) if isinstance(value, str) else (0, value, "")


def in_words(coords: Mapping[str, Level]) -> str:
    """Coordinates for people."""
    return ", ".join(
        f"{axis} {value:g}" if isinstance(value, float) else str(value) for axis, value in coords.items()
    )


def matches(entry: Entry, select: Select, levels: Mapping[str, Any]) -> bool:
    """Whether an entry has the values asked for; a data set also goes by what it stands for."""
    for axis, wanted in select.items():
        options = {level(value, levels) for value in (wanted if isinstance(wanted, list) else [wanted])}
        mine = {entry.coords[axis]} if axis in entry.coords else set()
        if entry.stands_for.get(axis):
            mine.add(level(entry.stands_for[axis]))
        if not mine & options:
            return False
    return True


def published_data(name: str, claim: Claim, claims: Claims, rows: Sequence[Mapping[str, str]]) -> Data:
    """The entries of a published table."""
    published = claim.published
    assert published is not None
    where = f"paper/tables/{published.table}.csv"
    if not rows:
        raise UserError(f"config/claims.yaml: claims.{name}.published.table: {where} is empty or not there")
    column = published.value or next((c for c in VALUES if c in rows[0]), "")
    if column not in rows[0]:
        raise UserError(f"{where}: no column {column or 'score, mean or value'!r}")
    entries = []
    for row in rows:
        coords = {
            k: level(v, claims.levels)
            for k, v in row.items()
            if k not in (column, "std", "stderr", "n") and v
        }
        if any(value in AVERAGES for value in coords.values()):
            continue
        coords |= {
            axis: level(value) for axis, value in published.fixed.items() if not isinstance(value, list)
        }
        coords |= derived(coords, str(coords.get("dataset", "")), claims)
        items = published.items
        try:
            entries.append(
                Entry(
                    coords=coords,
                    values=[float(row[column])],
                    spread=float(row["std"]) if row.get("std") else None,
                    seeds=published.seeds,
                    share_items=items.get(str(coords.get("dataset", "")), 0)
                    if isinstance(items, dict)
                    else items,
                    scale=published.scale,
                )
            )
        except (ValueError, TypeError):
            raise UserError(f"{where}: {row[column]!r} is no number") from None
    kept = [entry for entry in entries if matches(entry, published.where, claims.levels)]
    return Data(source="paper", entries=kept, higher_is_better=published.better == "higher")


def derived(coords: Mapping[str, Level], stands_for: str, claims: Claims) -> dict[str, Level]:
    """Coordinates that follow from the others: the aliases of the claims file, and ``familiarity``."""
    found: dict[str, Level] = {}
    for alias, names in claims.aliases.items():
        for axis in names:
            method = axis.rpartition(".")[0]
            if axis in coords and (not method or coords.get("method") == method):
                found[alias] = coords[axis]
                break
    for name, columns in claims.familiarity.items():
        if stands_for in columns:
            found["familiarity"] = name
    return found


def our_data(
    claim: Claim, claims: Claims, study: TabulateSpec, results: Path, where: Select
) -> Data | NotComputable:
    """The entries of our runs that are ``where`` a test looks; runs without a number are entries that say why.

    Not computable where higher is better in some of these runs and worse in others, and the claim does not say.
    """
    datasets = {dataset.name: dataset.stands_for for dataset in study.datasets}
    models = {model.name: model.stands_for for model in study.models}
    groups: dict[str, list[Outcome]] = {}
    coords_of: dict[str, dict[str, Level]] = {}
    for outcome in read_outcomes(study, results):
        if outcome.cell.method == UNTUNED:
            continue
        point = {k: level(v, claims.levels) for k, v in coordinates(outcome.cell).items() if v is not None}
        point.pop("seed", None)
        point |= derived(point, datasets.get(outcome.cell.dataset, ""), claims)
        key = repr(sorted(point.items()))
        coords_of[key] = point
        groups.setdefault(key, []).append(outcome)
    entries = [
        _entry(
            coords_of[key],
            here,
            claim,
            {
                "dataset": datasets.get(here[0].cell.dataset, ""),
                "target": datasets.get(here[0].cell.target, ""),
                "model": models.get(here[0].cell.model, ""),
            },
            results,
        )
        for key, here in groups.items()
    ]
    entries = [entry for entry in entries if matches(entry, where, claims.levels)]
    sides = {o.higher_is_better for entry in entries for o in entry.outcomes if o.estimate}
    if len(sides) > 1 and not claim.ours.better:
        return NotComputable(
            "higher is better in some of its runs, worse in others: say which in 'ours.better'"
        )
    higher = claim.ours.better != "lower" if claim.ours.better else sides != {False}
    cache: dict[int, Items | NotComputable] = {}

    def items(entry: Entry) -> Items | NotComputable:
        if id(entry) not in cache:
            cache[id(entry)] = entry_items(entry, claim, results)
        return cache[id(entry)]

    return Data(
        source="ours",
        entries=entries,
        higher_is_better=higher,
        items=None if claim.ours.fact else items,
        hours=lambda entries: hours_per_seed(entries, results),
    )


def _entry(
    coords: dict[str, Level], here: Sequence[Outcome], claim: Claim, stands_for: dict[str, str], results: Path
) -> Entry:
    import statistics

    values, missing = [], []
    for outcome in here:
        value = (
            _fact(outcome, claim.ours.fact, results) if claim.ours.fact else _value(outcome, claim, results)
        )
        if isinstance(value, float):
            values.append(value)
        else:
            missing.append(value)
    return Entry(
        coords=coords,
        stands_for=stands_for,
        values=values,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        seeds=len(values),
        missing=missing,
        outcomes=list(here),
    )


def _value(outcome: Outcome, claim: Claim, results: Path) -> float | str:
    if outcome.estimate is None:
        return f"{outcome.status}: {outcome.reason}"
    if claim.ours.column == "score":
        return outcome.estimate.value
    found = read_items(results / outcome.cell.scores, results, claim.ours.column)
    return found.reason if isinstance(found, NotComputable) else found.value


def _fact(outcome: Outcome, path: str, results: Path) -> float | str:
    """A number of the training record."""
    folder = results / outcome.cell.scores
    try:
        found: Any = read_record(folder.parent.parent / RECORD).facts
    except UserError as error:
        return str(error)
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return f"missing: the training record has no number {path}"
    return float(found)


def entry_items(entry: Entry, claim: Claim, results: Path) -> Items | NotComputable:
    """Scores per test item of all seeds of an entry."""
    column = claim.ours.column
    runs = [
        read_items(
            results / outcome.cell.scores,
            results,
            column,
            outcome.estimate.value if column == "score" and outcome.estimate else None,
        )
        for outcome in entry.outcomes
    ]
    return over_seeds(runs)


def hours_per_seed(entries: Iterable[Entry], results: Path) -> tuple[float, str] | None:
    """Hours that training these entries once took, GPU hours where a GPU was used; None where one is unknown."""
    total, unit = 0.0, "machine hours"
    for entry in entries:
        costs = []
        for outcome in entry.outcomes:
            try:
                made = read_record((results / outcome.cell.scores).parent.parent / RECORD).provenance
            except UserError:
                continue
            gpu, wall = made.get("gpu_seconds"), made.get("wall_seconds")
            if isinstance(gpu, int | float) and gpu > 0:
                unit = "GPU hours"
                costs.append(gpu / 3600)
            elif isinstance(wall, int | float):
                costs.append(wall / 3600)
        if not costs:
            return None
        total += sum(costs) / len(costs)
    return total, unit
