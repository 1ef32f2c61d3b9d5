"""VQA-score of VQAv2, OKVQA and VizWiz in five variants, each equal to its public evaluator in every bit.

An answer scores the mean over the ten annotators of min(1, matches among the other nine / 3). The variants differ in
what is normalised before strings are compared:

================  =====================================================================================================
official          GT-Vision-Lab/VQA (a013f00): both sides, unless all answers of the question are the same string; then
                  nothing is, and "Yes" is wrong where ten people said "yes"
evalai (default)  the EvalAI answer processor on the prediction, as LLaVA (c121f04) submits, then ``official``
legacy2017        the evaluator of 2017 (a4f1afd), which Qwen-VL and LAVIS still use: the prediction is always
                  normalised, the answers only lose punctuation
always_normalise  OpenFlamingo (655f693): both sides, always
m4c               LLaVA's TextVQA evaluator: the EvalAI processor on both sides; asserts ten answers
================  =====================================================================================================

"Other" answers are those of another annotator, by position: the official code compares dictionaries, which is the same
where answers carry ``answer_id``, and where they do not (VizWiz) scores agreement down to zero. Nothing is changed in
place, so scoring twice gives the same. A question with a number of answers other than ten is scored over as many as it
has, as the official code does, and is counted in the record; ``m4c`` refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, read_settings

if TYPE_CHECKING:
    import numpy as np

    from peftbench.data.example import Example
    from peftbench.metrics._vqa_refs import Compiled

VARIANTS = ("official", "evalai", "legacy2017", "always_normalise", "m4c")
Variant = Literal["official", "evalai", "legacy2017", "always_normalise", "m4c"]
ANNOTATORS = 10
UNANSWERABLE = "unanswerable"
MAX_QUESTION_TYPES = 100
"""Question types are split out only where there are at most so many (VQAv2 has 65)."""


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of the VQA-score."""

    variant: Variant = "evalai"
    """Which variant is the value; the record holds all five."""


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """VQA-score of each prediction against its example's annotators; see the module for the variants."""
    from peftbench.metrics._vqa_refs import compile_answers

    typed = read_settings(Settings, settings, "vqa_score")
    check_lengths(predictions, examples)
    compiled = compile_answers(
        [example.id for example in examples],
        [example.answers for example in examples],
        [example.image for example in examples],
        [example.answer_type for example in examples],
        [example.question_type for example in examples],
    )
    return score_compiled(predictions, compiled, typed)


def score_compiled(predictions: Sequence[str], references: Compiled, settings: Settings) -> MetricResult:
    """VQA-score against compiled references, in their order; one pass gives all variants."""
    from peftbench.metrics._uncertainty import cluster_codes, mean_uncertainty
    from peftbench.metrics.base import split_means

    widths = {ids.shape[1]: len(rows) for rows, ids in references.groups}
    uneven = sum(count for width, count in widths.items() if width != ANNOTATORS)
    if uneven and settings.variant == "m4c":
        rows, ids = next(group for group in references.groups if group[1].shape[1] != ANNOTATORS)
        raise UserError(
            f"row {ascii(references.ids[int(rows[0])])} has {ids.shape[1]} answers: variant m4c asserts ten; choose "
            "another variant"
        )
    accuracies = variant_accuracies(predictions, references)
    means = {name: None if x is None else corpus_mean(x) for name, x in accuracies.items()}
    shown = accuracies[settings.variant]
    assert shown is not None
    per_example = (100 * shown).tolist()
    error = mean_uncertainty(per_example, cluster_codes(references.images) if references.images else None, settings)
    extra: dict[str, Any] = {
        "variant": settings.variant,
        "variants": means,
        # What the official code prints: two digits, rounded half to even on the binary value.
        "rounded": {name: None if mean is None else round(mean, 2) for name, mean in means.items()},
        "not_ten_answers": uneven,
        "uncertainty": error.facts,
    }
    if references.answer_types:
        extra["by_answer_type"] = split_means(per_example, references.answer_types)
        if UNANSWERABLE in extra["by_answer_type"]:
            flags = [UNANSWERABLE if kind == UNANSWERABLE else "answerable" for kind in references.answer_types]
            extra["by_answerability"] = split_means(per_example, flags)
    kinds = set(references.question_types)
    if 1 < len(kinds) <= MAX_QUESTION_TYPES:
        extra["by_question_type"] = split_means(per_example, references.question_types)
    value = means[settings.variant]
    assert value is not None
    return MetricResult(
        value=value,
        per_example=per_example,
        extra=extra,
        n=len(per_example),
        stderr=error.stderr,
        interval=error.interval,
    )


def corpus_mean(accuracies: np.ndarray) -> float:
    """100 * sum / n, added one after the other as the official code does."""
    values = accuracies.tolist()
    return 100 * float(sum(values)) / len(values)


def variant_accuracies(predictions: Sequence[str], references: Compiled) -> dict[str, np.ndarray | None]:
    """Accuracy in [0, 1] of each prediction by variant, float64 [n]; m4c is None where a question has not ten answers."""
    import numpy as np

    from peftbench.metrics._vqa_text import prediction_forms

    distinct: dict[str, int] = {}
    codes = np.array([distinct.setdefault(text, len(distinct)) for text in predictions], dtype=np.int32)
    get = references.vocabulary.get
    forms = [prediction_forms(text) for text in distinct]
    # Ids of (cleaned, normalised, submitted, submitted normalised) for each prediction; -1: no annotator's word.
    known = np.array([[get(text, -1) for text in four] for four in forms], dtype=np.int32)
    cleaned, normalised, submitted, resubmitted = known[codes].T
    out = {name: np.zeros(len(codes)) for name in VARIANTS}
    for rows, raw in references.groups:
        clean_ids = references.forms["clean"][raw]
        normal_ids = references.forms["normalised"][raw]
        unanimous = (clean_ids == clean_ids[:, :1]).all(axis=1)
        official = np.where(unanimous[:, None], clean_ids, normal_ids)
        whole = len(rows) == len(codes)
        take = (lambda x: x) if whole else (lambda x, rows=rows: x[rows])
        out["official"][rows] = _accuracies(official, np.where(unanimous, take(cleaned), take(normalised)))
        out["evalai"][rows] = _accuracies(official, np.where(unanimous, take(submitted), take(resubmitted)))
        out["always_normalise"][rows] = _accuracies(normal_ids, take(normalised))
        untouched = (raw == raw[:, :1]).all(axis=1)
        legacy = references.forms["stripped"][raw]
        legacy = np.where(untouched[:, None], references.forms["raw"][raw], legacy)
        out["legacy2017"][rows] = _accuracies(legacy, take(normalised))
        out["m4c"][rows] = _accuracies(references.forms["evalai"][raw], take(submitted))
    even = all(raw.shape[1] == ANNOTATORS for _, raw in references.groups)
    return {name: None if name == "m4c" and not even else x for name, x in out.items()}


def _accuracies(answers: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Leave-one-out accuracy, float64 [m], of prediction ids [m] against answer ids [m, width]."""
    import numpy as np

    equal = answers == predictions[:, None]
    width = equal.shape[1]
    if width > 16:
        return np.array([leave_one_out(row) for row in equal.tolist()])
    # The pattern of matches as one integer: a thousand patterns at most, so each is computed once.
    packed = np.packbits(equal, axis=1, bitorder="little").astype(np.uint16)
    patterns = packed[:, 0] if width <= 8 else packed[:, 0] | packed[:, 1] << 8
    table = np.zeros(1 << width)
    for pattern in np.flatnonzero(np.bincount(patterns)):
        table[pattern] = leave_one_out([bool(pattern >> bit & 1) for bit in range(width)])
    return table[patterns]


def leave_one_out(matches: Sequence[bool]) -> float:
    """Mean over annotators of min(1, matches among the others / 3), summed in their order as the official code does."""
    total = sum(matches)
    return float(sum([min(1, float(total - match) / 3) for match in matches])) / len(matches)
