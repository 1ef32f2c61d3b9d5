"""Exact match against one or more answers: OCR-VQA, and any other task with a closed form.

Source: ``evaluate_exact_match_accuracy`` of Qwen-VL's ``evaluate_vqa.py`` (aa00ed0): the best over the
annotations of ``answer.strip().lower() == annotation.strip().lower()``. A trailing period makes an answer
wrong there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, finish, read_settings

if TYPE_CHECKING:
    from peftbench.data.example import Example

Strictness = Literal["verbatim", "official", "lenient"]


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of exact match."""

    strictness: Strictness = "official"
    """``verbatim``: the same characters; ``official``: stripped, in lower case; ``lenient``: also with single
    spaces and without final periods and exclamation marks. The record holds all three."""


def lenient(text: str) -> str:
    """Lower case, single spaces, no final period or exclamation mark."""
    return " ".join(text.lower().split()).rstrip(".!").rstrip()


FORMS: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "official": lambda text: text.strip().lower(),
    "lenient": lenient,
}


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Accuracy (0-100); an empty prediction is invalid (and wrong unless an answer is empty too)."""
    typed = read_settings(Settings, settings, "exact_match")
    check_lengths(predictions, examples)
    by_form: dict[str, list[float]] = {name: [] for name in FORMS}
    for text, example in zip(predictions, examples, strict=True):
        if not example.answers:
            raise UserError(f"row {example.id!a} has no answers: give at least one")
        for name, form in FORMS.items():
            wanted = form(text)
            by_form[name].append(100.0 if any(wanted == form(answer) for answer in example.answers) else 0.0)
    invalid = sum(not text.strip() for text in predictions)
    extra = {
        "strictness": typed.strictness,
        "accuracy": {name: sum(values) / len(values) for name, values in by_form.items()},
        "invalid": invalid,
        "invalid_rate": 100 * invalid / len(predictions),
    }
    return finish(by_form[typed.strictness], examples, typed, extra)
