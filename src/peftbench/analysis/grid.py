"""A table as people read it: rows by columns, seeds merged, averages added, the best of each block marked."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from peftbench.analysis.outcomes import (
    COORDINATES,
    Estimate,
    Outcome,
    average,
    coordinates,
    over_seeds,
)
from peftbench.analysis.statistics.items import Items
from peftbench.analysis.statistics.items import over_seeds as items_over_seeds
from peftbench.analysis.statistics.result import NotComputable
from peftbench.analysis.statistics.ties import Ties, tied_with_best
from peftbench.analysis.style import UNTUNED, axis_title, method_title, variant_title
from peftbench.analysis.summaries import ABSENT, Number, costs_of, summarise, without_change
from peftbench.errors import UserError
from peftbench.views import People, PeopleCount, Summary, TabulateSpec

AVERAGES = {"all": "Average", "seen": "Avg. seen", "unseen": "Avg. unseen"}
NO_VALUE = "–"
ReadItems = Callable[[Outcome], Items | NotComputable]
"""Gives the scores per test item of a run."""


Status = Literal["ok", "failed", "missing", "absent"]
"""Of a place in the table: that of its runs, or ``absent`` where the study has none there."""


class GridCell(Struct, frozen=True, kw_only=True):
    """One place of the table."""

    status: Status
    reason: str = ""
    estimate: Estimate | None = None
    higher_is_better: bool = True
    published: float | None = None
    people: PeopleCount | None = None
    """What people counted in the same answers."""
    best: bool = False
    """The best of its block and column, or not told from it: by the paired bootstrap over test items where
    ``items`` are there, else because it lies within the best one's interval."""
    items: list[Items] = []
    """Scores per test item: of one test set, or of those that an average is over; empty where not known."""
    over: int = 1
    """Of an average: how many columns it is over; places where the study has no run do not count."""
    cost: str = ""
    """Of a summary of what runs cost: which; it has no error and no mark."""
    change: bool = False
    """Whether it is a difference from the untuned base."""
    against_base: Literal["", "better", "worse"] = ""
    """Whether its interval lies wholly on one side of that of the untuned base model."""

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        if self.estimate is None or self.published is None:
            return None
        return self.estimate.value - self.published


class GridRow(Struct, frozen=True, kw_only=True):
    """One row: its labels under the row headings, its cells, its averages."""

    labels: list[str]
    name: str
    """The row within its block, in words: "adapter, connector tuned"."""
    untuned: bool
    cells: list[GridCell]
    averages: list[GridCell]


class Block(Struct, frozen=True, kw_only=True):
    """Rows that are compared with each other: those of one value of the outermost axis."""

    label: str
    rows: list[GridRow]


class Column(Struct, frozen=True, kw_only=True):
    """A column: its heading, and a second line where there is one."""

    label: str
    note: str = ""
    key: Any = None


class Grid(Struct, frozen=True, kw_only=True):
    """The whole table."""

    title: str
    headings: list[str]
    """Of the row labels."""
    columns: list[Column]
    averages: list[Column]
    blocks: list[Block]
    paired: bool = False
    """Whether marks come from the paired bootstrap wherever items can be compared."""
    sources: list[str] = []
    """Sentences on where the numbers come from, of a table where people count too."""

    @property
    def rows(self) -> list[GridRow]:
        """All rows, top to bottom."""
        return [row for block in self.blocks for row in block.rows]

    def count(self, status: Status) -> int:
        """Cells (averages not counted) of a status."""
        return sum(cell.status == status for row in self.rows for cell in row.cells)


def build_grid(
    spec: TabulateSpec,
    outcomes: Sequence[Outcome],
    read_items: ReadItems | None = None,
    results: Path | None = None,
) -> Grid:
    """Lay out the outcomes of a study as its spec says; with ``read_items``, ties with the best are tested.

    ``results`` is the results folder, for summaries of what runs cost; without it they have no value.

    Raises ``UserError`` where runs that differ in more than their seed fall into one place of the table.
    """
    points = [coordinates(outcome.cell) for outcome in outcomes]
    order = _value_order(points)
    columns = sorted(
        {point[spec.columns]: None for point in points if not _everywhere(spec, point)},
        key=lambda value: order[spec.columns][value],
    )
    if not columns:  # nothing but the base model, which has no value on this axis
        columns = [None] if points else []
    placed: dict[tuple[Any, ...], dict[Any, list[int]]] = {}
    for index, point in enumerate(points):
        key = tuple(_row_value(spec, point, axis) for axis in spec.rows)
        row = placed.setdefault(key, {})
        for column in columns if _everywhere(spec, point) else [point[spec.columns]]:
            row.setdefault(column, []).append(index)
    untuned = {
        key: all(points[i]["method"] == UNTUNED for indices in row.values() for i in indices)
        for key, row in placed.items()
    }
    keys = sorted(placed, key=lambda key: _rank(spec, key, order))
    headings = [_column(spec, column, outcomes) for column in columns]
    averages = _averages(spec, columns)
    summaries = _summaries(spec, outcomes, results)
    rows = []
    for key in keys:
        cells = [_place(spec, outcomes, placed[key].get(column, []), read_items) for column in columns]
        means = [
            _mean([cells[i] for i in chosen], spec.columns not in ("dataset", "target"))
            for _, chosen in averages
        ]
        means += summaries(dict(zip(columns, cells, strict=True)), placed[key], untuned[key])
        labels = _labels(spec, key, untuned[key])
        name = _name(spec, key, labels)
        rows.append(GridRow(labels=labels, name=name, untuned=untuned[key], cells=cells, averages=means))
    return Grid(
        title=spec.title,
        headings=[axis_title(axis) for axis in spec.rows],
        columns=headings,
        averages=[column for column, _ in averages]
        + [Column(label=summary.title, key=name) for name, summary in spec.summaries],
        blocks=_blocks(spec, keys, rows),
        paired=read_items is not None,
        sources=_sources(spec, outcomes),
    )


def annotators(people: People) -> str:
    """Who counted: "2 people, majority"."""
    return f"{people.annotators} people, majority" if people.annotators > 1 else "1 person"


def _sources(spec: TabulateSpec, outcomes: Sequence[Outcome]) -> list[str]:
    """Where each kind of number comes from; nothing where people do not count."""
    people = spec.people
    if people is None:
        return []
    found = [f"Values: automatic ({spec.metric})."]
    if any(outcome.published is not None for outcome in outcomes):
        found.append("Published values: counted by people, as the paper says.")
    if not people.annotators:
        found.append(f"People have not counted here yet ('peftbench annotate make {spec.study}').")
        return found
    shown = {o.people.answers for o in outcomes if o.people}
    found.append(f"People: counted by {annotators(people)}; {people.agreement}.")
    left = sum(one.answers not in shown for one in people.counts)
    if left:
        found.append(
            f"{left} of their {len(people.counts)} counts are of answers that these runs do not give any more."
        )
    return found


def _everywhere(spec: TabulateSpec, point: dict[str, Any]) -> bool:
    """Whether a run has no value of its own on the axis across the table: the base model on most axes."""
    own = ("model", "dataset", "target", "method", "measure")
    return point["method"] == UNTUNED and spec.columns not in own


def _row_value(spec: TabulateSpec, point: dict[str, Any], axis: str) -> Any:
    """A run's value on an axis down the table; None where it has none.

    The untuned model has a model and what it is tested on; it was tuned on nothing.
    """
    elsewhere = spec.columns == "target" or any(cell.dataset != cell.target for cell in spec.cells)
    own = ("model", "method", "target", "" if elsewhere and spec.base == "once" else "dataset")
    if point["method"] == UNTUNED and axis not in own:
        return None
    return point.get(axis)


def _value_order(points: Iterable[dict[str, Any]]) -> dict[str, dict[Any, int]]:
    """Axis -> value -> position: the order of the study's files, what is untuned first."""
    order: dict[str, dict[Any, int]] = {}
    for point in sorted(points, key=lambda point: point["method"] == UNTUNED):
        for axis, value in point.items():
            values = order.setdefault(axis, {})
            values.setdefault(value, len(values))
    order.get("method", {})[UNTUNED] = -1
    return order


def _rank(spec: TabulateSpec, key: tuple[Any, ...], order: dict[str, dict[Any, int]]) -> list[int]:
    return [-1 if value is None else order[axis][value] for axis, value in zip(spec.rows, key, strict=True)]


def _column(spec: TabulateSpec, value: Any, outcomes: Sequence[Outcome]) -> Column:
    mine = [
        outcome
        for outcome in outcomes
        if outcome.estimate and coordinates(outcome.cell).get(spec.columns) == value
    ]
    notes = [f"n = {n}" for n in sorted({outcome.estimate.n for outcome in mine if outcome.estimate})]
    label = _title(spec, spec.columns, value)
    if spec.columns in ("dataset", "target"):
        info = next(dataset for dataset in spec.datasets if dataset.name == value)
        notes = [spec.metric or info.metric, *notes, "seen" if info.seen else "unseen"]
    elif spec.columns not in ("model", "method", "measure", "setting") and value is not None:
        label = f"{axis_title(spec.columns)} {value}"
    if mine and not any(outcome.higher_is_better for outcome in mine):
        notes.append("lower is better")
    return Column(label=label, note=" · ".join(notes), key=value)


def _title(spec: TabulateSpec, axis: str, value: Any) -> str:
    """What a table says for a value of an axis."""
    if value is None:
        return NO_VALUE
    if axis == "model":
        return next((model.title for model in spec.models if model.name == value), str(value))
    if axis in ("dataset", "target"):
        return next((dataset.label for dataset in spec.datasets if dataset.name == value), str(value))
    if axis == "measure":
        return str(value).replace("_", " ")
    return method_title(value) if axis == "method" else str(value)


def _labels(spec: TabulateSpec, key: tuple[Any, ...], untuned: bool) -> list[str]:
    labels = [_title(spec, axis, value) for axis, value in zip(spec.rows, key, strict=True)]
    if untuned and "method" not in spec.rows and labels:
        labels[key.index(None) if None in key else -1] = method_title(UNTUNED)
    return labels


def _name(spec: TabulateSpec, key: tuple[Any, ...], labels: Sequence[str]) -> str:
    parts = [
        label
        if axis in ("model", "dataset", "target", "method") or value is None
        else variant_title({axis: label})
        for axis, value, label in zip(spec.rows, key, labels, strict=True)
    ]
    own = parts[1:] if len(parts) > 1 else parts
    return ", ".join(part for part in own if part != NO_VALUE)


def _averages(spec: TabulateSpec, columns: Sequence[Any]) -> list[tuple[Column, list[int]]]:
    """The averages asked for, each with the columns that it is taken over; empty ones are left out."""
    seen = {dataset.name: dataset.seen for dataset in spec.datasets}
    found = []
    for name in spec.averages:
        if name != "all" and spec.columns not in ("dataset", "target"):
            raise UserError(
                f"config/studies/{spec.study}.yaml: averages: {name!r} needs data sets as the columns"
            )
        chosen = [i for i, column in enumerate(columns) if name == "all" or seen[column] == (name == "seen")]
        if chosen:
            found.append((Column(label=AVERAGES[name], note=f"of {len(chosen)}", key=name), chosen))
    return found


def _place(
    spec: TabulateSpec, outcomes: Sequence[Outcome], indices: Sequence[int], read_items: ReadItems | None
) -> GridCell:
    """The runs of one place as one cell: the mean over seeds, or what went wrong with one of them."""
    if not indices:
        return GridCell(status="absent", reason="not part of the study")
    here = [outcomes[i] for i in indices]
    _check_seeds_only(spec, here)
    published = next((o.published for o in here if o.published is not None), None)
    bad = [outcome for outcome in here if outcome.estimate is None]
    if bad:
        bad.sort(key=lambda outcome: outcome.status)  # failed before missing
        reason = bad[0].reason
        if len(here) > 1:
            reason = f"{len(bad)} of {len(here)} seeds: {reason}"
        return GridCell(status=bad[0].status, reason=reason, published=published)
    return GridCell(
        status="ok",
        estimate=over_seeds([o.estimate for o in here if o.estimate]),
        higher_is_better=here[0].higher_is_better,
        published=published,
        people=next((o.people for o in here if o.people), None),
        items=_items(here, read_items),
    )


def _items(here: Sequence[Outcome], read_items: ReadItems | None) -> list[Items]:
    found = items_over_seeds([read_items(outcome) for outcome in here]) if read_items else None
    return [found] if isinstance(found, Items) else []


def _check_seeds_only(spec: TabulateSpec, here: Sequence[Outcome]) -> None:
    first = coordinates(here[0].cell)
    for outcome in here[1:]:
        point = coordinates(outcome.cell)
        differing = [
            axis for axis in {*COORDINATES, *first, *point} - {"seed"} if first.get(axis) != point.get(axis)
        ]
        if differing:
            axes = " and ".join(sorted(differing))
            raise UserError(
                f"config/studies/{spec.study}.yaml: rows: runs that differ in {axes} fall into one place of "
                f"the table: add {axes} to rows"
            )


def _mean(cells: Sequence[GridCell], same_items: bool) -> GridCell:
    """The average of a row's cells; ``same_items``: all are about the same test examples."""
    cells = [cell for cell in cells if cell.status != "absent"]
    if not cells:
        return GridCell(status="absent", reason="not part of the study")
    estimates = [cell.estimate for cell in cells if cell.estimate]
    bad = [cell for cell in cells if cell.estimate is None]
    if bad:
        status: Status = "failed" if any(cell.status == "failed" for cell in bad) else "missing"
        return GridCell(status=status, reason=f"{len(bad)} of {len(cells)} values are missing")
    if len({cell.higher_is_better for cell in cells}) > 1:
        return GridCell(status="missing", reason="higher is better in some columns, worse in others")
    known = [cell.published for cell in cells if cell.published is not None]
    separate = not same_items and all(cell.items for cell in cells)
    return GridCell(
        status="ok",
        estimate=average(estimates, same_items),
        higher_is_better=cells[0].higher_is_better,
        published=sum(known) / len(known) if len(known) == len(cells) else None,
        items=[items for cell in cells for items in cell.items] if separate else [],
        over=len(cells),
    )


def _summaries(
    spec: TabulateSpec, outcomes: Sequence[Outcome], results: Path | None
) -> Callable[[dict[Any, GridCell], dict[Any, list[int]], bool], list[GridCell]]:
    """Makes the cells of a row's summaries from its cells, the outcomes behind them, and whether it is the base."""
    wanted = dict(spec.summaries)
    plain = without_change(wanted)
    bases: dict[tuple[str, Any], dict[str, Number]] = {}

    def own_of(indices: dict[Any, list[int]]) -> Any:
        tuned_on = {outcomes[i].cell.dataset for found in indices.values() for i in found}
        return tuned_on.pop() if len(tuned_on) == 1 else None

    def model_of(indices: dict[Any, list[int]]) -> str:
        return next(outcomes[i].cell.model for found in indices.values() for i in found)

    def base_of(model: str, own: Any) -> dict[str, Number]:
        if (model, own) not in bases:
            found: dict[Any, Number] = {}
            for outcome in outcomes:
                cell = outcome.cell
                if cell.method == UNTUNED and cell.model == model:
                    found.setdefault(cell.target, _number_of_outcome(outcome))
            bases[model, own] = summarise(plain, found, own, None, lambda _: None)
        return bases[model, own]

    def make(cells: dict[Any, GridCell], indices: dict[Any, list[int]], untuned: bool) -> list[GridCell]:
        if not wanted:
            return []
        own, model = own_of(indices), model_of(indices)
        scores = [outcomes[i].cell.scores for found in indices.values() for i in found]
        costs = costs_of(results, scores) if results and not untuned else lambda _: None
        columns = {column: _number_of_cell(cell) for column, cell in cells.items()}
        base = None if untuned else base_of(model, own)
        found = summarise(wanted, columns, own, base, costs)
        return [_summary_cell(wanted[name], number) for name, number in found.items()]

    return make


def _number_of_outcome(outcome: Outcome) -> Number:
    return Number(estimate=outcome.estimate, reason=outcome.status, higher_is_better=outcome.higher_is_better)


def _number_of_cell(cell: GridCell) -> Number:
    return Number(estimate=cell.estimate, reason=cell.status, higher_is_better=cell.higher_is_better)


def _summary_cell(summary: Summary, number: Number) -> GridCell:
    if number.estimate is None:
        status: Status = "absent" if number.reason == ABSENT else "missing"
        return GridCell(status=status, reason=f"{summary.title}: {number.reason}")
    return GridCell(
        status="ok",
        estimate=number.estimate,
        higher_is_better=number.higher_is_better,
        cost=summary.cost,
        change=summary.change,
    )


def _blocks(spec: TabulateSpec, keys: Sequence[tuple[Any, ...]], rows: Sequence[GridRow]) -> list[Block]:
    """Rows grouped by the outermost axis where there are several axes; marks are set within a group."""
    grouped: dict[Any, list[GridRow]] = {}
    labels: dict[Any, str] = {}
    for key, row in zip(keys, rows, strict=True):
        outer = key[0] if len(spec.rows) > 1 else ""
        grouped.setdefault(outer, []).append(row)
        labels.setdefault(outer, row.labels[0] if len(spec.rows) > 1 else "")
    untuned = [row for row in grouped.get(None, []) if row.untuned]
    alone = untuned[0] if len(untuned) == 1 else None  # of no block: the reference of all
    return [
        Block(label=method_title(UNTUNED) if outer is None else labels[outer], rows=_marked(block, alone))
        for outer, block in grouped.items()
    ]


def _marked(rows: list[GridRow], otherwise: GridRow | None) -> list[GridRow]:
    """Rows with the best marked, and compared with their block's untuned row or else the given one."""
    base = next((row for row in rows if row.untuned), otherwise)
    width = len(rows[0].cells)
    columns = list(zip(*([*row.cells, *row.averages] for row in rows), strict=True))
    marked = []
    for place, column in enumerate(columns):
        reference = None if base is None else [*base.cells, *base.averages][place]
        ties = _ties(column)
        marked.append([_mark(cell, tied, reference) for cell, tied in zip(column, ties, strict=True)])
    return [
        msgspec.structs.replace(
            row, cells=[c[i] for c in marked[:width]], averages=[c[i] for c in marked[width:]]
        )
        for i, row in enumerate(rows)
    ]


def _ties(column: Sequence[GridCell]) -> list[bool]:
    """Which cells of a column are the best or not told from it; none where there is nothing to compare."""
    scored = [i for i, cell in enumerate(column) if cell.estimate and not cell.cost]
    ties = [False] * len(column)
    if len(scored) < 2:
        return ties
    higher = column[scored[0]].higher_is_better
    tested: Ties | NotComputable = NotComputable("no scores per test item")
    if all(column[i].items for i in scored):
        tested = tied_with_best([column[i].items for i in scored], higher_is_better=higher)
    if isinstance(tested, Ties):
        for i, tied in zip(scored, tested.tied, strict=True):
            ties[i] = tied
        return ties
    estimates = {i: estimate for i in scored if (estimate := column[i].estimate)}
    best = max(estimates.values(), key=lambda e: e.value if higher else -e.value)
    for i, mine in estimates.items():
        ties[i] = best.low <= mine.value <= best.high or mine.value == best.value
    return ties


def _mark(cell: GridCell, tied: bool, reference: GridCell | None) -> GridCell:
    mine = cell.estimate
    if mine is None or cell.cost:
        return cell
    side: Literal["", "better", "worse"] = ""
    if cell.change:
        if mine.low > 0 or mine.high < 0:
            side = "better" if (mine.low > 0) == cell.higher_is_better else "worse"
    elif reference is not None and reference.estimate is not None and reference.over == cell.over:
        if mine.low > reference.estimate.high:
            side = "better" if cell.higher_is_better else "worse"
        elif mine.high < reference.estimate.low:
            side = "worse" if cell.higher_is_better else "better"
    return msgspec.structs.replace(cell, best=tied, against_base=side)
