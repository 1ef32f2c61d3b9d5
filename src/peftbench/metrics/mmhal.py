"""MMHAL-Bench: the mean rating (0-6) that a judge gives, and how many answers it finds to hallucinate.

Two ways in. ``score`` takes a judge's texts as predictions, in the official order, and follows
``summarize_gpt_mmhal.py`` of LLaVA-RLHF (830a083) to the letter: what cannot be read is 0 and a
hallucination (``metrics.scales.mmhal``). ``score_judgements`` takes the judge stage's table: means are over
the items that were judged, a failed judgement is counted with its reason and gets no score, and ``official``
gives what the official rule makes of the same replies.

The judge's own answers are not reproducible (gpt-4-0314 is retired); keep its texts. ``consistent`` checks
that the mean is the mean of the types' means, as it must be with 12 questions each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftbench.errors import RunFailed
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, finish, read_settings
from peftbench.metrics.scales.mmhal import QUESTIONS, TYPES, hallucinated
from peftbench.metrics.scales.mmhal import official_rating as read_rating

if TYPE_CHECKING:
    from peftbench.data.example import Example
    from peftbench.metrics._judged import Judgement

NEEDS_JUDGE = True
"""The score stage hands over judgements (``score_judgements``) rather than answers."""


class Settings(MetricSettings, frozen=True, kw_only=True):
    """MMHAL has no settings of its own."""


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Mean rating (0-6) of judge texts, with the hallucination rate (0-100) and both by type."""
    typed = read_settings(Settings, settings, "mmhal")
    check_lengths(predictions, examples)
    read = [read_rating(text) for text in predictions]
    ratings = [rating for rating, _ in read]
    kinds = [TYPES[place % len(TYPES)] for place in range(len(ratings))]
    extra = _figures(ratings, [hallucinated(rating) for rating in ratings], kinds)
    extra["unreadable"] = sum(not one for _, one in read)
    columns: dict[str, list[Any]] = {"hallucinated": [hallucinated(rating) for rating in ratings]}
    return finish([float(rating) for rating in ratings], examples, typed, extra, columns=columns)


def score_judgements(
    judgements: Sequence[Judgement], examples: Sequence[Example], settings: dict[str, Any]
) -> MetricResult:
    """Mean rating (0-6) over the judged items; ``per_example`` is NaN where the judgement failed."""
    typed = read_settings(Settings, settings, "mmhal")
    judged = [(row, example) for row, example in zip(judgements, examples, strict=True) if not row.failed]
    if not judged:
        raise RunFailed(f"none of the {len(judgements)} judgements succeeded")
    rows = [row for row, _ in judged]
    ratings = [int(row.rating or 0) for row in rows]
    flags = [bool(row.hallucinated) for row in rows]
    extra = _figures(ratings, flags, [row.type for row in rows])
    reasons = Counter(row.failed for row in judgements if row.failed)
    replies = [read_rating(row.reply)[0] for row in judgements if row.reply is not None]
    extra |= {
        "judged": len(rows),
        "failed": len(judgements) - len(rows),
        "failures": dict(sorted(reasons.items())),
        "official": {
            "value": sum(replies) / len(replies),
            "hallucination_rate": 100 * sum(map(hallucinated, replies)) / len(replies),
            "n": len(replies),
        },
    }
    result = finish([float(rating) for rating in ratings], [e for _, e in judged], typed, extra)
    result.per_example = [math.nan if row.failed else float(row.rating or 0) for row in judgements]
    result.columns = {
        "hallucinated": [row.hallucinated for row in judgements],
        "failed": [row.failed for row in judgements],
    }
    return result


def _figures(ratings: Sequence[int], flags: Sequence[bool], kinds: Sequence[str]) -> dict[str, Any]:
    """Hallucination rate and the figures by type, in the official order of types."""
    by_type: dict[str, dict[str, float | int]] = {}
    known = [kind for kind in TYPES if kind in kinds]
    for name in [*known, *sorted(set(kinds) - set(TYPES) - {""})]:
        mine = [place for place, kind in enumerate(kinds) if kind == name]
        by_type[name] = {
            **_mean([float(ratings[place]) for place in mine]),
            "hallucination_rate": 100 * sum(flags[place] for place in mine) / len(mine),
        }
    mean = sum(ratings) / len(ratings)
    means = [float(kind["value"]) for kind in by_type.values()]
    complete = len(ratings) == QUESTIONS
    return {
        "hallucination_rate": 100 * sum(flags) / len(flags),
        "rate": {**_mean([100.0 * flag for flag in flags]), "higher_is_better": False},
        "by_type": by_type,
        "complete": complete,
        "consistent": abs(mean - sum(means) / len(means)) < 1e-9 if complete and means else None,
    }


def _mean(values: Sequence[float]) -> dict[str, float | int]:
    """Mean with its standard error; one value has none, so it gets that of the largest spread on its scale."""
    n = len(values)
    mean = sum(values) / n
    spread = sum((value - mean) ** 2 for value in values)
    stderr = math.sqrt(spread / (n - 1) / n) if n > 1 else max(values[0], 1.0)
    return {"value": mean, "stderr": stderr, "n": n}
