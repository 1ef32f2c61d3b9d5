"""POPE: yes/no questions about objects; accuracy, precision, recall, F1 and the rate of "yes".

Source: ``evaluate.py`` of RUCAIBox/POPE (3df3ba1), the same as LLaVA's ``eval_pope.py`` (c121f04). An answer
is cut at its first period, commas are deleted, and it is "no" if one of its words (between single spaces) is
``No``, ``not`` or ``no``; everything else is "yes", also "", ``NO`` and "There isn't". A label other than
"no" is "yes". Where the script divides by zero (no "yes" at all), precision, recall and F1 are 0 here.

The value is the accuracy; ``extra`` has the rest, per category too where the examples have a
``question_type``. ``unreadable`` counts answers without any of yes and no in any case, which the official
rule takes for "yes".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, finish, read_settings

if TYPE_CHECKING:
    from peftbench.data.example import Example

_SAYS = re.compile(r"\b(?:yes|no|not)\b|n't\b", re.IGNORECASE)


class Settings(MetricSettings, frozen=True, kw_only=True):
    """POPE has no settings of its own."""


def says_yes(text: str) -> bool:
    """Whether the official rule takes an answer for "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not ("No" in words or "not" in words or "no" in words)


def rates(predicted: Sequence[bool], actual: Sequence[bool]) -> dict[str, float | int]:
    """Accuracy, precision, recall, F1 and yes-rate, all on 0-100, with the four counts."""
    pairs = list(zip(predicted, actual, strict=True))
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    tn, fn = pairs.count((False, False)), pairs.count((False, True))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "accuracy": 100 * (tp + tn) / len(pairs),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * f1,
        "yes_rate": 100 * (tp + fp) / len(pairs),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Accuracy (0-100) of yes/no answers."""
    typed = read_settings(Settings, settings, "pope")
    check_lengths(predictions, examples)
    for example in examples:
        if not example.answers:
            raise UserError(f'row {example.id!a} has no label: give "yes" or "no"')
    predicted = [says_yes(text) for text in predictions]
    actual = [example.answers[0] != "no" for example in examples]
    extra: dict[str, Any] = dict(rates(predicted, actual))
    extra["unreadable"] = sum(_SAYS.search(text) is None for text in predictions)
    kinds = sorted({example.question_type for example in examples} - {""})
    if kinds:
        extra["by_category"] = {
            kind: rates(
                [
                    says
                    for says, example in zip(predicted, examples, strict=True)
                    if example.question_type == kind
                ],
                [
                    truth
                    for truth, example in zip(actual, examples, strict=True)
                    if example.question_type == kind
                ],
            )
            for kind in kinds
        }
    scores = [100.0 * (says == truth) for says, truth in zip(predicted, actual, strict=True)]
    return finish(scores, examples, typed, extra, columns={"says_yes": list(predicted)})
