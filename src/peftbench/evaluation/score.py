"""The score stage: a metric's result per example and for the whole set of predictions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbench.data.example import Example
from peftbench.data.load import read_examples
from peftbench.errors import UserError
from peftbench.metrics._judged import JUDGEMENTS_FILE, read_judgements
from peftbench.metrics.base import MetricResult, load_metric
from peftbench.spec import ScoreSpec
from peftbench.store import atomic_parquet


def score_predictions(
    spec: ScoreSpec, predictions_dir: Path, data_dir: Path, out_dir: Path
) -> dict[str, Any]:
    """Score ``predictions.parquet`` against the test split; write ``examples.parquet`` into ``out_dir``.

    Of a metric that declares ``NEEDS_LOSSES``, the predict stage left ``losses.parquet`` instead. Of one that declares
    ``NEEDS_JUDGE``, the folder is the judge stage's and has ``judgements.parquet``; a failed judgement has the score
    null. The file written has id, score and the metric's further columns, in the order of the predictions.

    Returns the facts of the record: value, n, stderr, interval, higher_is_better, extra. Predictions that
    name an unknown example, name one twice or leave one out are a UserError naming it.
    """
    from peftbench.arrow import pa, pq

    metric = load_metric(spec.metric)
    examples = {example.id: example for example in read_examples(data_dir, "test")}
    if getattr(metric, "NEEDS_JUDGE", False):
        path = predictions_dir / JUDGEMENTS_FILE
        judgements = read_judgements(path)
        ids = [row.id for row in judgements]
        _check_ids(ids, examples, path)
        judged: Any = metric  # only such metrics have the function
        result = judged.score_judgements(judgements, [examples[name] for name in ids], spec.settings)
    elif getattr(metric, "NEEDS_LOSSES", False):
        path = predictions_dir / "losses.parquet"
        table = _table(path, ["id", "loss", "tokens"])
        ids = table.column("id").to_pylist()
        _check_ids(ids, examples, path)
        of_losses: Any = metric  # only such metrics have the function
        losses, tokens = (table.column(name).to_pylist() for name in ("loss", "tokens"))
        result = of_losses.score_losses(losses, tokens, [examples[name] for name in ids], spec.settings)
    else:
        path = predictions_dir / "predictions.parquet"
        table = _table(path, ["id", "prediction"])
        ids = table.column("id").to_pylist()
        _check_ids(ids, examples, path)
        predictions: list[str] = table.column("prediction").to_pylist()
        result = metric.score(predictions, [examples[name] for name in ids], spec.settings)
    out_dir.mkdir(parents=True, exist_ok=True)
    target = out_dir / "examples.parquet"
    # A score that is NaN is none (a judgement that failed): null, so that whoever reads it cannot miss it.
    scores = [None if math.isnan(score) else score for score in result.per_example]
    columns = {"id": ids, "score": scores, **result.columns}
    frame = pa.table({name: pa.array(values) for name, values in columns.items()})
    atomic_parquet(target, lambda temporary: pq.write_table(frame, temporary))
    return {
        **summary(spec.metric, result),
        "outputs": {target.name: hashlib.sha256(target.read_bytes()).hexdigest()},
    }


def _table(path: Path, columns: list[str]) -> Any:
    """Columns of a file of the predict stage; ``UserError`` where it is missing or damaged."""
    from peftbench.arrow import pa, read_table

    try:
        return read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete the folder and run again") from None


def _check_ids(ids: Sequence[str], examples: Mapping[str, Example], path: Path) -> None:
    """Each example once, and nothing else; ``UserError`` naming the first id that breaks it."""
    seen: set[str] = set()
    for name in ids:
        if name not in examples:
            raise UserError(f"{path}: id {name!r} is not in the test split: delete the folder and run again")
        if name in seen:
            raise UserError(f"{path}: id {name!r} appears twice: delete the folder and run again")
        seen.add(name)
    missing = next((name for name in examples if name not in seen), None)
    if missing is not None:
        raise UserError(f"{path}: no prediction for {missing!r}: delete the folder and run again")


def summary(metric: str, result: MetricResult) -> dict[str, Any]:
    """A result without its examples, as plain JSON; ValueError for a number that is not finite (a bug)."""
    facts = {
        "metric": metric,
        "value": result.value,
        "n": result.n,
        "stderr": result.stderr,
        "interval": result.interval,
        "higher_is_better": result.higher_is_better,
        "extra": result.extra,
    }
    json.dumps(facts, allow_nan=False)
    return facts
