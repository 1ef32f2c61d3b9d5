"""The scale of MMHAL-Bench: 0 to 6, hallucinated below 3, eight types of question.

``official_rating`` is the rule of ``summarize_gpt_mmhal.py`` of LLaVA-RLHF (830a083): a text is rated s in
0..6 if "rating: s" occurs in it (lower case) for exactly one s; none or several give 0. So ``Rating:3`` is 0,
``Rating: 13`` is 1 and ``Operating: 3`` is 3. ``read`` is ours: it takes the same rating with or without
marks around it, and what it cannot read is no rating at all rather than 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftbench.metrics.scales import Reading

if TYPE_CHECKING:
    from peftbench.data.example import Example

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
QUESTIONS = 96
HIGHEST = 6
HALLUCINATED_BELOW = 3
_RATING = re.compile(
    r"\brating\b[ \t*_`'\"]*[:=][ \t*_`'\"(\[]*(-?\d+(?:\.\d+)?)(?!\d|\.\d|\s*(?:-|–|to\b)\s*\d)",
    re.IGNORECASE,
)


def official_rating(text: str) -> tuple[int, bool]:
    """(rating, whether exactly one was found) of a judge's text, by the official rule."""
    lower = text.lower()
    found = [rating for rating in range(HIGHEST + 1) if f"rating: {rating}" in lower]
    return (found[0], True) if len(found) == 1 else (0, False)


def read(reply: str) -> Reading:
    """The one rating of a reply; repeating it is no second one."""
    found = list(dict.fromkeys(float(number) for number in _RATING.findall(reply)))
    if not found:
        return Reading(None, "no rating in the reply" if reply.strip() else "empty reply")
    if len(found) > 1:
        return Reading(None, f"several ratings in the reply: {', '.join(f'{n:g}' for n in found)}")
    rating = found[0]
    if rating not in range(HIGHEST + 1):
        return Reading(None, f"the rating {rating:g} is not one of 0 to {HIGHEST}")
    return Reading(int(rating))


def hallucinated(rating: int) -> bool:
    """Whether a rating says that the answer hallucinates."""
    return rating < HALLUCINATED_BELOW


def types(examples: Sequence[Example]) -> list[str]:
    """The type of each question: its own, or that of its position where the whole set is in official order."""
    given = [example.question_type.lower() for example in examples]
    if any(given) or len(given) != QUESTIONS:
        return given
    return [TYPES[place % len(TYPES)] for place in range(len(given))]
