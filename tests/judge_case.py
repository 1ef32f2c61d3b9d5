"""Predictions to judge, and the judge stage on them."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopback_judge import LoopbackJudge
from peftbench.data.example import Example
from peftbench.evaluation.score import score_predictions
from peftbench.judging.prompt import read_prompt
from peftbench.judging.stage import judge_predictions
from peftbench.metrics.scales.mmhal import TYPES
from peftbench.spec import Execution, JudgeSpec, ScoreSpec

VARIABLE = "PEFTBENCH_TEST_KEY"
EXECUTION = Execution(judge_key_variable=VARIABLE, judge_timeout=0.8, judge_attempts=3)
PROMPT = read_prompt("mmhal")
SCORE = ScoreSpec(metric="mmhal", settings={"replicates": 100})


def example(i: int, **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": f"q{i}",
        "image": f"{i // 2:064x}",
        "question": f"What is there? #q{i}#",
        "choices": [],
        "answer_index": -1,
        "answers": ["a dog"],
        "target": "a dog",
        "question_type": TYPES[i % 8],
        "answer_type": "",
        "split": "test",
        "source": json.dumps({"image_content": ["dog", "grass"]}),
    }
    return Example(**{**fields, **changes})


class Case:
    """Predictions and data in a folder, and the stage on them."""

    def __init__(self, folder: Path, server: LoopbackJudge | None, n: int = 8) -> None:
        self.folder, self.server, self.n = folder, server, n
        self.data, self.predictions = folder / "data", folder / "predictions"
        self.staging, self.out = folder / "staging", folder / "judgements"
        for path in (self.data, self.predictions, self.out):
            path.mkdir()
        rows = msgspec.to_builtins([example(i) for i in range(n)])
        pq.write_table(pa.Table.from_pylist(rows), self.data / "test.parquet")
        ids = [f"q{i}" for i in reversed(range(n))]
        table = pa.table({"id": ids, "prediction": [f"answer to {name}" for name in ids]})
        pq.write_table(table, self.predictions / "predictions.parquet")

    def spec(self, **changes: Any) -> JudgeSpec:
        fields: dict[str, Any] = {"kind": "endpoint", "scale": "mmhal", "prompt": PROMPT, "model": "judge-1"}
        fields["base_url"] = self.server.url if self.server else "http://127.0.0.1:9/v1"
        return JudgeSpec(**{**fields, **changes})

    def judge(self, execution: Execution = EXECUTION, **changes: Any) -> dict[str, Any]:
        return judge_predictions(
            self.spec(**changes), self.predictions, self.data, self.out, self.staging, execution
        )

    def rows(self) -> list[dict[str, Any]]:
        return pq.read_table(self.out / "judgements.parquet").to_pylist()

    def score(self) -> dict[str, Any]:
        return score_predictions(SCORE, self.out, self.data, self.folder / "scores")
