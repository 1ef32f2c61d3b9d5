from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import examples

from peftbench.errors import UserError
from peftbench.evaluation.score import score_predictions
from peftbench.spec import ScoreSpec

SPEC = ScoreSpec(metric="vqa_score", settings={"variant": "official"})


def stage(folder: Path, ids: list[str], texts: list[str]) -> dict[str, object]:
    rows = examples([["yes"] * 10, ["no"] * 10])
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(msgspec.to_builtins(rows)), folder / "data" / "test.parquet")
    table = pa.table({"id": ids, "prediction": texts, "prompt": [""] * len(ids)})
    pq.write_table(table, folder / "predictions.parquet")
    return score_predictions(SPEC, folder, folder / "data", folder / "scores")


def test_scores_of_a_run(tmp_path: Path) -> None:
    facts = stage(tmp_path, ["x1", "x0"], ["no", "Yes"])
    assert facts["value"] == 50.0
    assert facts["n"] == 2
    assert facts["extra"]["variants"]["evalai"] == 100.0  # type: ignore[index]
    table = pq.read_table(tmp_path / "scores" / "examples.parquet").to_pydict()
    assert table["id"] == ["x1", "x0"]
    assert table["score"] == [100.0, 0.0]
    assert table["evalai"] == [100.0, 100.0]
    assert stage(tmp_path, ["x1", "x0"], ["no", "Yes"]) == facts, "the same bytes again"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["x0"], "no prediction for 'x1'"),
        (["x0", "x0"], "appears twice"),
        (["x0", "y"], "'y' is not in the test"),
    ],
)
def test_wrong_predictions_are_named(tmp_path: Path, ids: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stage(tmp_path, ids, ["yes"] * len(ids))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        score_predictions(SPEC, tmp_path, tmp_path, tmp_path)
