"""Examples for tests of the metrics."""

import json
from typing import Any

from peftbench.data.example import Example


def example(name: str = "x", **fields: Any) -> Example:
    source = fields.pop("source", {})
    values: dict[str, Any] = {
        "id": name,
        "image": "",
        "question": "",
        "choices": [],
        "answer_index": -1,
        "answers": [],
        "target": "",
        "question_type": "",
        "answer_type": "",
        "split": "test",
        "source": json.dumps(source),
    }
    return Example(**{**values, **fields})


def examples(answers: list[list[str]], **fields: Any) -> list[Example]:
    return [example(f"x{place}", answers=texts, **fields) for place, texts in enumerate(answers)]
