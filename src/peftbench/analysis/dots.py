"""What the figure of a study shows, without how it is drawn: panels of dots read from the long table."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from peftbench.analysis.outcomes import COORDINATES, VARIANT_AXES, Estimate, average, over_seeds, varying_axes
from peftbench.analysis.style import UNTUNED, variant_title
from peftbench.analysis.table import MEASURED

if TYPE_CHECKING:
    import polars as pl

Row = dict[str, Any]
T = TypeVar("T")


class Dot(Struct, frozen=True, kw_only=True):
    """One method in one variant; without an estimate where its run has none."""

    method: str
    variant: str
    status: str
    estimate: Estimate | None = None


class Panel(Struct, frozen=True, kw_only=True):
    """One data set (or the average) of one model."""

    model: str
    title: str
    note: str
    dots: list[Dot]
    base: Estimate | None = None
    average: bool = False


class Figure(Struct, frozen=True, kw_only=True):
    """All panels, model by model, with what the methods and their variants are called."""

    methods: list[str]
    """Names; their titles are for whoever draws."""
    variants: list[str]
    models: list[str]
    panels: list[Panel]


def figure_data(frame: "pl.DataFrame") -> Figure:
    """Panels for each model: the average over the data sets where there are several, then each data set."""
    rows: list[Row] = frame.to_dicts()
    tuned = [row for row in rows if row["method"] != UNTUNED]
    further = [name for name in frame.columns if name not in COORDINATES and name not in MEASURED]
    axes = varying_axes(tuned, [*VARIANT_AXES, *(name for name in further if name != "measure")])
    for row in rows:
        row["variant"] = variant_of(row, axes)
    methods = distinct(row["method"] for row in tuned)
    variants = distinct(row["variant"] for row in tuned)
    models = distinct(row["model"] for row in rows)
    panels = []
    for model in models:
        mine = [row for row in rows if row["model"] == model]
        places = distinct((row["target"], row.get("measure")) for row in mine)
        single = [
            _panel([row for row in mine if (row["target"], row.get("measure")) == place], methods, variants)
            for place in places
        ]
        comparable = len({row["higher_is_better"] for row in mine}) == 1 and not any(m for _, m in places)
        # an average needs runs that are tested everywhere, not each on other sets
        everywhere = set.intersection(*({(dot.method, dot.variant) for dot in p.dots} for p in single))
        if len(single) > 1 and comparable and everywhere:
            panels.append(_average_panel(single))
        panels.extend(single)
    titles = {row["model"]: row["model_title"] for row in rows}
    return Figure(
        methods=methods, variants=variants, models=[titles[model] for model in models], panels=panels
    )


def variant_of(row: Row, axes: Sequence[str]) -> str:
    """What these axes say of a row, in words; a data set by its label."""
    values = {axis: row[axis] for axis in axes if row[axis] is not None}
    if row.get("tuned_on") and "dataset" in values:
        values["dataset"] = row["tuned_on"]
    return variant_title(values)


def distinct(values: Iterable[T]) -> list[T]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))


def _panel(rows: Sequence[Row], methods: Sequence[str], variants: Sequence[str]) -> Panel:
    dots = []
    for method in methods:
        for variant in variants:
            here = [row for row in rows if row["method"] == method and row["variant"] == variant]
            if here:
                dots.append(_dot(method, variant, here))
    base = [estimate for row in rows if row["method"] == UNTUNED and (estimate := row_estimate(row))]
    first = rows[0]
    counts = sorted({row["n"] for row in rows if row["n"] is not None})
    what = first["dataset_label"] if first.get("measure") else first["metric"]
    note = ", ".join([what, *(f"n = {n}" for n in counts)])
    if not first["higher_is_better"]:
        note += ", lower is better"
    return Panel(
        model=first["model_title"],
        title=(first.get("measure") or first["dataset_label"]).replace("_", " "),
        note=note,
        dots=dots,
        base=over_seeds(base) if base else None,
    )


def _dot(method: str, variant: str, rows: Sequence[Row]) -> Dot:
    bad = sorted({row["status"] for row in rows} - {"ok"})
    estimates = [estimate for row in rows if (estimate := row_estimate(row))]
    if bad or not estimates:
        return Dot(method=method, variant=variant, status=bad[0] if bad else "missing")
    return Dot(method=method, variant=variant, status="ok", estimate=over_seeds(estimates))


def row_estimate(row: Row) -> Estimate | None:
    """The score of a row of the long table; None where its run has none."""
    if row["value"] is None:
        return None
    return Estimate(**{name: row[name] for name in ("value", "stderr", "low", "high", "n")})


def _average_panel(panels: Sequence[Panel]) -> Panel:
    dots = []
    for key in dict.fromkeys((dot.method, dot.variant) for panel in panels for dot in panel.dots):
        found = [dot for panel in panels for dot in panel.dots if (dot.method, dot.variant) == key]
        estimates = [dot.estimate for dot in found if dot.estimate]
        if len(estimates) == len(panels):
            dots.append(Dot(method=key[0], variant=key[1], status="ok", estimate=average(estimates)))
        else:
            status = next((dot.status for dot in found if dot.status != "ok"), "missing")
            dots.append(Dot(method=key[0], variant=key[1], status=status))
    bases = [panel.base for panel in panels if panel.base]
    return Panel(
        model=panels[0].model,
        title="Average",
        note=f"of {len(panels)} data sets",
        dots=dots,
        base=average(bases) if len(bases) == len(panels) else None,
        average=True,
    )
