"""Accuracy of option letters on ScienceQA, by LLaVA's rules (default) or lmms-eval's.

Sources: ``eval_science_qa.py`` of haotian-liu/LLaVA (c121f04); ``scienceqa/utils.py`` of lmms-eval (75571cf);
the splits follow the evaluation of lupantech/ScienceQA (2cbf831).

``llava``: the text is exactly one of A-E; or it begins with such a letter, a period and a space; or "The
answer is X" with one more character is found exactly once. Nothing is stripped, so ``A.``, `` A``, ``(A)``
and "The answer is A" at the end of the text are no answers. A letter beyond the item's choices is no answer
either. ``lmms_eval``: stripped and equal to the letter in either case, or a capital and a period at its
beginning.

An answer that cannot be read is wrong, and ``invalid_rate`` says how many there were. A missing prediction
counts as wrong in the total and leaves the image split, as in LLaVA's script.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.metrics.base import (
    MetricResult,
    MetricSettings,
    check_lengths,
    finish,
    read_settings,
    source_of,
    split_means,
)

if TYPE_CHECKING:
    from peftbench.data.example import Example

LETTERS = "ABCDE"
# The last "." is not escaped in the official pattern: any character but a new line must follow the letter.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_EARLY_GRADES = {f"grade{number}" for number in range(1, 7)}
_LATE_GRADES = {f"grade{number}" for number in range(7, 13)}


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of ScienceQA accuracy."""

    rule: Literal["llava", "lmms_eval"] = "llava"
    """How the letter is read from the text."""


def read_letter(text: str) -> str:
    """The option letter in a text by LLaVA's rules, "" where there is none."""
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return str(found[0]) if len(found) == 1 else ""


def read_letter_lmms(text: str) -> str:
    """The option letter in a text by lmms-eval's rules, "" where there is none."""
    text = text.strip()
    if len(text) == 1 and text.upper() in LETTERS:
        return text.upper()
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else ""


def choice_index(letter: str, choices: Sequence[str]) -> int:
    """Index of a letter among the choices (at most five), -1 where it names none of them."""
    options = LETTERS[: len(choices)]
    return options.index(letter) if letter and letter in options else -1


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Accuracy (0-100) with the official splits and the rate of invalid answers."""
    typed = read_settings(Settings, settings, "scienceqa")
    check_lengths(predictions, examples)
    read = read_letter if typed.rule == "llava" else read_letter_lmms
    scores, parsed = [], []
    for text, example in zip(predictions, examples, strict=True):
        if not example.choices:
            raise UserError(f"row {example.id!a} has no choices: give at least two")
        if not 0 <= example.answer_index < len(example.choices):
            raise UserError(
                f"row {example.id!a}: answer_index {example.answer_index} is none of its "
                f"{len(example.choices)} choices (they count from 0)"
            )
        if example.answer_index >= len(LETTERS):
            raise UserError(f"row {example.id!a}: answer_index {example.answer_index} has no letter (A to E)")
        index = choice_index(read(text), example.choices)
        parsed.append(index)
        scores.append(100.0 if index == example.answer_index else 0.0)
    invalid = sum(index < 0 for index in parsed)
    extra = {
        "rule": typed.rule,
        "invalid": invalid,
        "invalid_rate": 100 * invalid / len(parsed),
        "correct": sum(value > 0 for value in scores),
        "splits": _splits(scores, examples),
    }
    return finish(scores, examples, typed, extra, columns={"parsed": parsed})


def _splits(scores: list[float], examples: Sequence[Example]) -> dict[str, Any]:
    """The official splits, as far as the data has hints, grades and subjects to tell them."""
    facts = [source_of(example) for example in examples]
    images = [bool(example.image) for example in examples]
    splits: dict[str, Any] = split_means(scores, ["img" if image else "no_img" for image in images])
    if any("hint" in fact for fact in facts):
        hints = [bool(fact.get("hint")) for fact in facts]
        splits |= split_means(scores, ["text" if hint else "" for hint in hints])
        none = ["" if hint or image else "no_context" for hint, image in zip(hints, images, strict=True)]
        splits |= split_means(scores, none)
    grades = [str(fact.get("grade", "")) for fact in facts]
    names = [
        "grade_1_6" if grade in _EARLY_GRADES else "grade_7_12" if grade in _LATE_GRADES else ""
        for grade in grades
    ]
    splits |= split_means(scores, names)
    return splits | split_means(scores, [str(fact.get("subject", "")) for fact in facts])
