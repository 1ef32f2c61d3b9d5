"""MMHAL-Bench: ratings read from a judge's texts, which are the predictions, in the official order.

Source: ``summarize_gpt_mmhal.py`` of LLaVA-RLHF (830a083). A text is rated s in 0..6 if "rating: s" occurs in
it (lower case) for exactly one s; none or several give 0. A rating below 3 is a hallucination. So
``Rating:3`` is 0, ``Rating: 13`` is 1 and ``Operating: 3`` is 3. Questions belong to eight types by their
position modulo 8.

The judge's own answers are not reproducible (gpt-4-0314 is retired); keep its texts. The value is the mean
rating (0-6); ``consistent`` checks that it is the mean of the types' means, as it must be with 12 questions
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, finish, read_settings

if TYPE_CHECKING:
    from peftbench.data.example import Example

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
QUESTIONS = 96
HALLUCINATED_BELOW = 3


class Settings(MetricSettings, frozen=True, kw_only=True):
    """MMHAL has no settings of its own."""


def read_rating(text: str) -> tuple[int, bool]:
    """(rating, whether exactly one was found) of a judge's text."""
    lower = text.lower()
    found = [rating for rating in range(7) if f"rating: {rating}" in lower]
    return (found[0], True) if len(found) == 1 else (0, False)


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Mean rating (0-6) of judge texts, with the hallucination rate (0-100) and both by type."""
    typed = read_settings(Settings, settings, "mmhal")
    check_lengths(predictions, examples)
    read = [read_rating(text) for text in predictions]
    ratings = [float(rating) for rating, _ in read]
    flags = [rating < HALLUCINATED_BELOW for rating in ratings]
    by_type: dict[str, dict[str, float | int]] = {}
    for place, name in enumerate(TYPES):
        mine, hallucinated = ratings[place :: len(TYPES)], flags[place :: len(TYPES)]
        if mine:
            by_type[name] = {
                "value": sum(mine) / len(mine),
                "hallucination_rate": 100 * sum(hallucinated) / len(mine),
                "n": len(mine),
            }
    mean = sum(ratings) / len(ratings)
    means = [float(kind["value"]) for kind in by_type.values()]
    extra: dict[str, Any] = {
        "hallucination_rate": 100 * sum(flags) / len(flags),
        "by_type": by_type,
        "unreadable": sum(not one for _, one in read),
        "complete": len(ratings) == QUESTIONS,
        "consistent": abs(mean - sum(means) / len(means)) < 1e-9 if len(ratings) == QUESTIONS else None,
    }
    return finish(ratings, examples, typed, extra, columns={"hallucinated": list(flags)})
