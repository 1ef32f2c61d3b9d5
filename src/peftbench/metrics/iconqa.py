"""Accuracy on IconQA: choose-text (the text of a choice) and fill-in-the-blank (a short string).

There is no official rule for generated text: ``tools/sub_acc.py`` of lupantech/IconQA (4b053f3) compares
``str(answer)`` with ``str(label)`` of a classifier. The rules here, all of them in the record, the shown one
a setting:

- ``official``: the answer verbatim (the text of the right choice, or the right string);
- ``exact``: stripped and in lower case (the form that published generative results use; default for blanks);
- ``contained`` (default for choices): the stripped, lower-case answer is a choice; or exactly one choice
  stands in it as whole words, where a choice inside a longer one that also stands there does not count;
- ``anls``: lmms-eval's measure, 1 - edit distance / length where that is at least 0.5 (75571cf).

The default is ``contained`` for questions with choices and ``exact`` without. An answer that names no choice,
or an empty one for a blank, is invalid: ``invalid_rate`` says how many there were.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.metrics.base import MetricResult, MetricSettings, check_lengths, finish, read_settings

if TYPE_CHECKING:
    from peftbench.data.example import Example

ANLS_THRESHOLD = 0.5


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of IconQA accuracy."""

    rule: Literal["auto", "official", "exact", "contained", "anls"] = "auto"
    """Which rule gives the value; ``auto`` is ``contained`` with choices and ``exact`` without."""
    task: Literal["auto", "choose_txt", "fill_in_blank"] = "auto"
    """What the questions are; ``auto`` tells it for each row by whether it has choices."""


def named_choice(text: str, choices: Sequence[str]) -> int:
    """Index of the one choice that a text names, -1 for none or several."""
    wanted = _plain(text)
    options = [_plain(choice) for choice in choices]
    if wanted in options:
        return options.index(wanted)
    spans = []
    for index, option in enumerate(options):
        if option:
            pattern = rf"(?<!\w){re.escape(option)}(?!\w)"
            spans += [(*match.span(), index) for match in re.finditer(pattern, wanted)]
    # "dark blue" names "dark blue", not also "blue"; "blue or dark blue" names both.
    outer = {
        index
        for begin, end, index in spans
        if not any(b <= begin and end <= e and e - b > end - begin for b, e, _ in spans)
    }
    named = {options[index] for index in outer}
    return min(outer) if len(named) == 1 else -1


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def anls(text: str, answer: str) -> float:
    """Normalised Levenshtein similarity, 0 below the threshold; on 0-1."""
    a, b = " ".join(text.strip().lower().split()), " ".join(answer.strip().lower().split())
    if not a and not b:
        return 1.0
    distance = _edit_distance(a, b) / max(len(a), len(b))
    return 1.0 - distance if 1.0 - distance >= ANLS_THRESHOLD else 0.0


def _edit_distance(a: str, b: str) -> int:
    if a == b:
        return 0
    if abs(len(a) - len(b)) * 2 > max(len(a), len(b)):
        return max(len(a), len(b))  # below the threshold whatever the rest: the answer may be very long
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """Accuracy (0-100) by the chosen rule, the other rules and the rate of invalid answers in the record."""
    typed = read_settings(Settings, settings, "iconqa")
    check_lengths(predictions, examples)
    by_rule: dict[str, list[float]] = {rule: [] for rule in ("official", "exact", "contained", "anls")}
    shown: list[float] = []
    parsed: list[int] = []
    invalid = 0
    for text, example in zip(predictions, examples, strict=True):
        answers = _answers(example)
        choosing = bool(example.choices) if typed.task == "auto" else typed.task == "choose_txt"
        if choosing and not example.choices:
            raise UserError(f"row {example.id!a} has no choices: choose_txt needs them")
        exact = any(text.strip().lower() == answer.strip().lower() for answer in answers)
        if choosing:
            index = named_choice(text, example.choices)
            contained = index >= 0 and _plain(example.choices[index]) in map(_plain, answers)
            invalid += index < 0
        else:
            index = -1
            contained = exact
            invalid += not text.strip()
        parsed.append(index)
        by_rule["official"].append(100.0 * any(text == answer for answer in answers))
        by_rule["exact"].append(100.0 * exact)
        by_rule["contained"].append(100.0 * contained)
        by_rule["anls"].append(100.0 * max(anls(text, answer) for answer in answers))
        rule = typed.rule if typed.rule != "auto" else "contained" if choosing else "exact"
        shown.append(by_rule[rule][-1])
    extra = {
        "rule": typed.rule,
        "task": typed.task,
        "accuracy": {rule: sum(values) / len(values) for rule, values in by_rule.items()},
        "invalid": invalid,
        "invalid_rate": 100 * invalid / len(parsed),
    }
    return finish(shown, examples, typed, extra, columns={"parsed": parsed})


def _answers(example: Example) -> list[str]:
    """The right answers of an example, with its choices checked."""
    if example.choices and example.answer_index != -1:
        if not 0 <= example.answer_index < len(example.choices):
            raise UserError(
                f"row {example.id!a}: answer_index {example.answer_index} is none of its "
                f"{len(example.choices)} choices (they count from 0)"
            )
        return [example.choices[example.answer_index]]
    if not example.answers:
        raise UserError(f"row {example.id!a} has neither answer_index nor answers: give one of them")
    return example.answers
