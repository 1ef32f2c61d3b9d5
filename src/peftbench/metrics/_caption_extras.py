"""ROUGE-L in Python, and METEOR and SPICE through pycocoevalcap's Java programs where these can run.

Source of ROUGE-L: ``Rouge`` of pycocoevalcap 1.2 (beta 1.2; the best precision and the best recall over the
references may come from different ones; words are cut at single spaces, so an empty caption has one empty
word).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

BETA = 1.2


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each tokenised candidate [n] against its references [n][>= 1], on 0-1."""
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        words = candidate.split(" ")
        masks: dict[str, int] = {}
        for place, word in enumerate(words):
            masks[word] = masks.get(word, 0) | 1 << place
        common = [(_common(masks, len(words), text.split(" ")), text.count(" ") + 1) for text in texts]
        precision = max(length / float(len(words)) for length, _ in common)
        recall = max(length / float(total) for length, total in common)
        if precision != 0 and recall != 0:
            scores.append(((1 + BETA**2) * precision * recall) / float(recall + BETA**2 * precision))
        else:
            scores.append(0.0)
    return scores


def _common(masks: dict[str, int], width: int, words: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table per machine word (Hyyrö 2004)."""
    full = (1 << width) - 1
    row = full
    for word in words:
        match = row & masks.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return width - row.bit_count()


def by_java(name: str, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """METEOR or SPICE of tokenised captions on 0-100: {"value", "per_example"}, or {"unavailable": why}."""
    from peftbench.metrics._ptb import java_binary

    if java_binary() is None:
        return {"unavailable": "no java on the PATH"}
    truth = {place: list(texts) for place, texts in enumerate(references)}
    given = {place: [text] for place, text in enumerate(candidates)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # they print, and stdout is the result's
            if name == "meteor":
                from pycocoevalcap.meteor.meteor import Meteor

                value, each = Meteor().compute_score(truth, given)
                scores = [100 * float(score) for score in each]
            else:
                from pycocoevalcap.spice.spice import Spice

                value, each = Spice().compute_score(truth, given)
                scores = [100 * float(score["All"]["f"]) for score in each]
    except Exception as error:  # whatever a Java program, its download or its pipe runs into
        lines = str(error).splitlines()
        return {"unavailable": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    return {"value": 100 * float(value), "per_example": scores}
