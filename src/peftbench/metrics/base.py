"""What every metric returns, the settings all share, and the registry: one module per metric."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, get_args, get_type_hints

import msgspec

from peftbench.errors import UserError

if TYPE_CHECKING:
    from peftbench.data.example import Example


class MetricResult(msgspec.Struct, kw_only=True):
    """A corpus score with everything needed to judge it.

    ``value``, ``per_example``, ``stderr`` and ``interval`` are on 0-100 (CIDEr x100, so it may exceed 100;
    the MMHAL rating stays on its own scale of 0 to 6). ``per_example`` is in the order of the predictions.
    """

    value: float
    per_example: list[float]
    extra: dict[str, Any]
    """Other views of the same predictions: splits, variants, counts. Plain JSON."""
    n: int
    stderr: float
    """Standard error of ``value``, clustered by image where questions share one."""
    interval: list[float]
    """Percentile bootstrap interval of ``value``: lower, upper."""
    higher_is_better: bool = True
    columns: dict[str, list[Any]] = {}
    """Further values per example (parsed answers, other variants), in the order of the predictions."""


class MetricSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings that every metric has: how its uncertainty is computed."""

    replicates: int = 1000
    """Bootstrap replicates; 0 for none (the interval is then the value +- 1.96 standard errors)."""
    seed: int = 0
    """Seed of the bootstrap: the same predictions give the same interval."""
    confidence: float = 0.95
    """Coverage of the bootstrap interval."""


class Metric(Protocol):
    """The interface of a metric module; its ``Settings`` add the metric's own fields."""

    Settings: type[MetricSettings]

    def score(
        self, predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]
    ) -> MetricResult:
        """Score predictions against the examples at the same positions."""
        ...


def metric_names() -> list[str]:
    """Names of the metrics that exist: the modules of this package that do not begin with an underscore."""
    names = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name != "base")


def load_metric(name: str) -> Metric:
    """The metric of that name, or a UserError that names the nearest one."""
    names = metric_names()
    if name not in names:
        raise UserError(f"unknown metric {name!r}{did_you_mean(name, names)}")
    return cast(Metric, importlib.import_module(f"peftbench.metrics.{name}"))


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """The tail of an error message: the nearest valid name, or all of them."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(names)}"


S = TypeVar("S", bound=MetricSettings)


def read_settings(kind: type[S], settings: dict[str, Any], metric: str) -> S:
    """Typed settings from plain data; unknown names and wrong types are a UserError."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    for name in settings:
        if name not in known:
            raise UserError(f"metric {metric} has no setting {name!r}{did_you_mean(name, known)}")
        words = [word for word in get_args(get_type_hints(kind)[name]) if isinstance(word, str)]
        if words and settings[name] not in words and isinstance(settings[name], str):
            raise UserError(
                f"settings of metric {metric}: {name}: {settings[name]!r} is not possible"
                f"{did_you_mean(settings[name], words)}"
            )
    try:
        typed = msgspec.convert(settings, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"settings of metric {metric}: {error}") from None
    if not 0.0 < typed.confidence < 1.0 or typed.replicates < 0:
        raise UserError(
            f"settings of metric {metric}: confidence must lie in (0, 1) and replicates must be >= 0"
        )
    return typed


def check_lengths(predictions: Sequence[str], examples: Sequence[Example]) -> None:
    """Every prediction a string, one per example, at least one; otherwise a UserError naming the row."""
    if len(predictions) != len(examples):
        raise UserError(f"{len(predictions)} predictions for {len(examples)} examples: give one for each")
    if not examples:
        raise UserError("no predictions to score: the list is empty")
    for prediction, example in zip(predictions, examples, strict=True):
        if not isinstance(prediction, str):
            raise UserError(
                f"the prediction of {example.id!a} is {type(prediction).__name__}, not a string: quote it"
            )


def source_of(example: Example) -> dict[str, Any]:
    """The data set's own facts about an example; {} where it has none."""
    if not example.source:
        return {}
    try:
        facts = msgspec.json.decode(example.source)
    except msgspec.DecodeError as error:
        raise UserError(
            f"source of example {example.id!r} is not JSON ({error}): prepare the data set again"
        ) from None
    return facts if isinstance(facts, dict) else {}


def finish(
    per_example: Sequence[float],
    examples: Sequence[Example],
    settings: MetricSettings,
    extra: dict[str, Any],
    *,
    higher_is_better: bool = True,
    columns: dict[str, list[Any]] | None = None,
) -> MetricResult:
    """A MetricResult whose value is the mean over examples, with its uncertainty; clusters are images."""
    from peftbench.metrics._uncertainty import cluster_codes, mean_uncertainty

    scores = [float(score) for score in per_example]
    error = mean_uncertainty(scores, cluster_codes([example.image for example in examples]), settings)
    return MetricResult(
        value=sum(scores) / len(scores),
        per_example=scores,
        extra={**extra, "uncertainty": error.facts},
        n=len(scores),
        stderr=error.stderr,
        interval=error.interval,
        higher_is_better=higher_is_better,
        columns=columns or {},
    )


def split_means(scores: Sequence[float], labels: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Mean score and count per label, labels sorted; rows labelled "" are left out."""
    sums: dict[str, list[float]] = {}
    for score, label in zip(scores, labels, strict=True):
        if label:
            sums.setdefault(label, []).append(score)
    return {
        label: {"value": sum(sums[label]) / len(sums[label]), "n": len(sums[label])} for label in sorted(sums)
    }
