"""From an example and an answer to the text that a judge gets.

A template has the places ``{question}``, ``{image_contents}``, ``{human_answer}`` and ``{model_answer}``, or, as
the official one of MMHAL-Bench, four ``{}`` in the order image contents, question, human answer, model answer.
Other braces are text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from peftbench.data.example import Example

PLACES = ("image_contents", "question", "human_answer", "model_answer")
NEEDED = ("question", "model_answer")
CONTENTS = ("image_content", "objects")
"""Keys of an example's ``source`` that list what its picture shows; the first one found counts."""
_PLACE = re.compile(r"\{(\w*)\}")


def read_prompt(scale: str, path: Path | None = None) -> str:
    """The template of a file, else our own of a scale; ``UserError`` where it cannot be read or filled."""
    import peftbench.metrics

    file = path or Path(peftbench.metrics.__file__).parent / "scales" / f"{scale}.txt"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        what = f"{path}: {error.strerror}" if path else f"scale {scale!r} has no prompt of its own"
        raise UserError(f"prompt_file: {what}: give the judge's prompt as a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"prompt_file: {path}: not UTF-8: save the file as UTF-8") from None
    check_prompt(text, f"prompt_file: {file}")
    return text


def check_prompt(template: str, where: str) -> None:
    """``UserError`` where a template has unknown places, or lacks one that it needs."""
    places = _PLACE.findall(template)
    if "" in places:
        if places != [""] * len(PLACES):
            raise UserError(
                f"{where}: {places.count('')} places '{{}}' and {len(places) - places.count('')} with names: "
                f"use four '{{}}' ({', '.join(PLACES)}) or the names"
            )
        return
    for name in places:
        if name not in PLACES:
            raise UserError(f"{where}: unknown place {{{name}}}{did_you_mean(name, PLACES)}")
    for name in NEEDED:
        if name not in places:
            raise UserError(f"{where}: the place {{{name}}} is missing")


def fill(template: str, example: Example, answer: str) -> str:
    """The text for one answer. Braces in what is filled in stay as they are.

    ``UserError`` names the example that lacks what the template asks for.
    """
    order = iter(PLACES)

    def value(match: re.Match[str]) -> str:
        name = match[1] or next(order)
        if name == "question":
            return example.question
        if name == "model_answer":
            return answer
        if name == "human_answer":
            return "; ".join(dict.fromkeys(example.answers))
        return _contents(example)

    return _PLACE.sub(value, template)


def _contents(example: Example) -> str:
    """What the picture shows, as a list in words."""
    try:
        facts: Any = json.loads(example.source) if example.source else {}
    except ValueError as error:
        raise UserError(
            f"source of example {example.id!r} is not JSON ({error}): prepare the data set again"
        ) from None
    for key in CONTENTS:
        listed = facts.get(key) if isinstance(facts, dict) else None
        if isinstance(listed, str):
            return listed
        if isinstance(listed, list):
            return ", ".join(map(str, listed))
    raise UserError(
        f"example {example.id!r} does not say what its picture shows (source: {' or '.join(CONTENTS)}): "
        "leave {image_contents} out of the judge's prompt"
    )
