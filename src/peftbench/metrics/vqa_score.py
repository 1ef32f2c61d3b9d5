"""VQA-score of VQAv2, OKVQA and VizWiz in five variants, each equal to its public evaluator in every bit.

An answer scores the mean over the ten annotators of min(1, matches among the other nine / 3). The variants
differ in what is normalised before strings are compared:

================  ===========================================================================================
official          GT-Vision-Lab/VQA (a013f00): both sides, unless all answers of the question are the same
                  string; then nothing is, and "Yes" is wrong where ten people said "yes"
evalai (default)  the EvalAI answer processor on the prediction, as LLaVA (c121f04) submits, then ``official``
legacy2017        the evaluator of 2017 (a4f1afd), which Qwen-VL and LAVIS still use: the prediction is always
                  normalised, the answers only lose punctuation
always_normalise  OpenFlamingo (655f693): both sides, always
m4c               LLaVA's TextVQA evaluator: the EvalAI processor on both sides; asserts ten answers
================  ===========================================================================================

"Other" answers are those of another annotator, by position: the official code compares dictionaries, which is
the same where answers carry ``answer_id``, and where they do not (VizWiz) scores agreement down to zero.
Nothing is changed in place, so scoring twice gives the same. A question with a number of answers other than
ten is scored over as many as it has, as the official code does, and is counted in the record; ``m4c`` refuses
it.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.metrics._vqa_refs import MAX_PATTERN_BITS, Interner, compile_answers
from peftbench.metrics._vqa_text import all_forms
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, read_settings

if TYPE_CHECKING:
    import numpy as np

    from peftbench.data.example import Example
    from peftbench.metrics._vqa_refs import Compiled, Group

VARIANTS = ("official", "evalai", "legacy2017", "always_normalise", "m4c")
Variant = Literal["official", "evalai", "legacy2017", "always_normalise", "m4c"]
ANNOTATORS = 10
UNANSWERABLE = "unanswerable"
BLOCK = 1 << 16
"""Questions compared at a time: arrays of a few hundred kilobytes stay in the cache of a core."""
MAX_QUESTION_TYPES = 100
"""Question types are split out only where there are at most so many (VQAv2 has 65)."""

_ALWAYS = {"always_normalise": ("normalised", "normalised"), "m4c": ("submitted", "submitted")}
COMPARED = {
    "mixed": {
        "official": ("normalised", "normalised"),
        "evalai": ("normalised", "resubmitted"),
        "legacy2017": ("stripped", "normalised"),
        **_ALWAYS,
    },
    "alike": {
        "official": ("cleaned", "cleaned"),
        "evalai": ("cleaned", "submitted"),
        "legacy2017": ("stripped", "normalised"),
        **_ALWAYS,
    },
    "same": {
        "official": ("cleaned", "cleaned"),
        "evalai": ("cleaned", "submitted"),
        "legacy2017": ("raw", "normalised"),
        **_ALWAYS,
    },
}
"""Per kind of question and variant: which form of the answers is compared with which form of the prediction."""
PREDICTION_FORMS = ("cleaned", "normalised", "submitted", "resubmitted")
"""The forms of predictions that are compared."""


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of the VQA-score."""

    variant: Variant = "evalai"
    """Which variant is the value; the record holds all five."""


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """VQA-score of each prediction against its example's annotators; see the module for the variants."""
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


def score_compiled(
    predictions: Sequence[str], references: Compiled, settings: Settings, *, columns: bool = True
) -> MetricResult:
    """VQA-score against compiled references, in their order; ``columns``: all variants per example."""
    from peftbench.metrics._uncertainty import mean_uncertainty

    odd = sorted(
        (int(group.rows.min()), group.width, len(group.rows))
        for group in references.groups
        if group.width != ANNOTATORS
    )
    if odd and settings.variant == "m4c":
        raise UserError(
            f"row {references.ids[odd[0][0]]!a} has {odd[0][1]} answers, and m4c asserts ten: choose another"
            " variant"
        )
    accuracies = variant_accuracies(predictions, references)
    means = {name: None if x is None else corpus_mean(x) for name, x in accuracies.items()}
    shown, value = accuracies[settings.variant], means[settings.variant]
    assert shown is not None and value is not None
    scores = 100 * shown
    error = mean_uncertainty(scores, references.images, settings)
    extra: dict[str, Any] = {
        "variant": settings.variant,
        "variants": means,
        # What the official code prints: two digits, rounded half to even on the binary value.
        "rounded": {name: None if mean is None else round(mean, 2) for name, mean in means.items()},
        "not_ten_answers": sum(count for _, _, count in odd),
        "uncertainty": error.facts,
    }
    if odd:
        extra["first_not_ten"] = str(references.ids[odd[0][0]])
    kinds = references.answer_types
    if kinds.codes is not None:
        extra["by_answer_type"] = _split(scores, kinds.names, kinds.codes)
        if UNANSWERABLE in kinds.names:
            flags = kinds.codes == kinds.names.index(UNANSWERABLE)
            extra["by_answerability"] = _split(scores, ["answerable", UNANSWERABLE], flags.astype("int32"))
    kinds = references.question_types
    if kinds.codes is not None and len(kinds.names) <= MAX_QUESTION_TYPES:
        extra["by_question_type"] = _split(scores, kinds.names, kinds.codes)
    return MetricResult(
        value=value,
        per_example=scores.tolist(),
        extra=extra,
        n=len(scores),
        stderr=error.stderr,
        interval=error.interval,
        columns={name: (100 * x).tolist() for name, x in accuracies.items() if x is not None}
        if columns
        else {},
    )


def _split(scores: np.ndarray, names: list[str], codes: np.ndarray) -> dict[str, dict[str, float | int]]:
    """Mean and count per label; rows without one are left out."""
    import numpy as np

    # bincount adds in the order of the rows, as the official code does per type.
    sums = np.bincount(codes, weights=scores, minlength=len(names)).tolist()
    counts = np.bincount(codes, minlength=len(names)).tolist()
    order = sorted(range(len(names)), key=names.__getitem__)
    return {names[i]: {"value": sums[i] / counts[i], "n": counts[i]} for i in order if names[i] and counts[i]}


def corpus_mean(accuracies: np.ndarray) -> float:
    """100 * sum / n, in every bit as the official code on this version of Python adds it."""
    if sys.version_info >= (3, 12):  # its sum() of floats is compensated
        total = sum(accuracies.tolist())
    else:
        total = float(accuracies.cumsum()[-1])  # one after the other, unlike numpy's pairwise sum
    return 100 * float(total) / len(accuracies)


def variant_accuracies(predictions: Sequence[str], references: Compiled) -> dict[str, np.ndarray | None]:
    """Accuracy in [0, 1] of each prediction by variant, float64 [n]; m4c is None unless all have ten."""
    import numpy as np

    distinct = Interner()
    codes = np.fromiter(map(distinct.__getitem__, predictions), dtype=np.intp, count=len(predictions))
    known = _known_forms(list(distinct), references)
    out = {name: np.zeros(len(codes)) for name in VARIANTS}
    for group in references.groups:
        if group.width > MAX_PATTERN_BITS:
            _score_wide(out, group, references.forms, known, codes[group.rows])
        else:
            for start in range(0, len(group.rows), BLOCK):
                _score_block(out, group, references.forms, known, codes, start)
    even = all(group.width == ANNOTATORS for group in references.groups)
    return {name: None if name == "m4c" and not even else x for name, x in out.items()}


def _known_forms(texts: list[str], references: Compiled) -> dict[str, np.ndarray]:
    """Per form the id of that form of each text, int32; -1 for what is no form of any answer."""
    import numpy as np

    def find(some: list[str]) -> np.ndarray:
        return np.array(list(map(references.vocabulary.get, some, itertools.repeat(-1))), dtype=np.int32)

    # What is itself an answer was normalised when the references were compiled.
    ids = find(texts)
    new = np.flatnonzero((ids < 0) | (ids >= len(references.forms["raw"])))
    forms = all_forms([texts[place] for place in new.tolist()])
    out = {}
    for name in PREDICTION_FORMS:
        out[name] = references.forms[name].take(ids, mode="clip")
        out[name][new] = find(forms[name])
    return out


def _score_block(
    out: dict[str, np.ndarray],
    group: Group,
    answer_forms: dict[str, np.ndarray],
    prediction_forms: dict[str, np.ndarray],
    codes: np.ndarray,
    start: int,
) -> None:
    """All variants for ``BLOCK`` questions of a group; ``codes`` [n]: which prediction each question got."""
    import numpy as np

    rows = group.rows[start : start + BLOCK]
    stop = start + len(rows)
    compared = COMPARED[group.kind]
    matches = {pair: np.zeros(len(rows), dtype=np.uint16) for pair in set(compared.values())}
    given = {name: ids[codes[rows]] for name, ids in prediction_forms.items()}
    offset = 0
    for reach in group.reach:  # all first answers, all second answers, ...
        if reach <= start:
            break
        place = slice(offset + start, offset + min(reach, stop))
        answers, patterns = group.answers[place].astype(np.intp), group.patterns[place]
        forms = {name: answer_forms[name][answers] for name in {pair[0] for pair in matches}}
        for (wanted, got), found in matches.items():
            found[: len(answers)] |= patterns * (forms[wanted] == given[got][: len(answers)])
        offset += reach
    accuracies = {pair: _pattern_table(group.width)[found] for pair, found in matches.items()}
    for variant, pair in compared.items():
        out[variant][rows] = accuracies[pair]


def _score_wide(
    out: dict[str, np.ndarray],
    group: Group,
    answer_forms: dict[str, np.ndarray],
    prediction_forms: dict[str, np.ndarray],
    codes: np.ndarray,
) -> None:
    """All variants for questions with too many answers for patterns; ``codes``: the prediction of each."""
    import numpy as np

    answers = group.answers.reshape(group.width, -1)
    for variant, (wanted, got) in COMPARED[group.kind].items():
        matches = answer_forms[wanted][answers] == prediction_forms[got][codes]
        out[variant][group.rows] = np.array([leave_one_out(row) for row in matches.T.tolist()])


@functools.cache
def _pattern_table(width: int) -> np.ndarray:
    """Accuracy of each pattern of matches among ``width`` answers, float64 [2 ** width]."""
    import numpy as np

    places = range(width)
    table = np.ones(1 << width)  # four matches are three others for everybody
    for pattern in range(1 << width):
        if pattern.bit_count() < 4:
            table[pattern] = leave_one_out([bool(pattern >> place & 1) for place in places])
    return table


def leave_one_out(matches: Sequence[bool]) -> float:
    """Mean over annotators of min(1, matches among the others / 3), summed in their order."""
    total = sum(matches)
    return float(sum([min(1, float(total - match) / 3) for match in matches])) / len(matches)
