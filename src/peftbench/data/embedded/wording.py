"""Word questions and answers as different people would: annotators, articles, plurals, distractors."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from peftbench.data.embedded import pack
from peftbench.data.embedded.pack import Concept
from peftbench.data.embedded.scene import Scene

ANNOTATORS = 10
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_IRREGULAR = {
    "mouse": "mice",
    "fish": "fish",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "squid": "squid",
    "cactus": "cacti",
    "fries": "fries",
    "scissors": "scissors",
    "jeans": "jeans",
    "hibiscus": "hibiscus",
    "sushi": "sushi",
    "spaghetti": "spaghetti",
}
_NO_ARTICLE = {
    "fries",
    "scissors",
    "jeans",
    "sushi",
    "spaghetti",
    "milk",
    "coffee",
    "tea",
    "beer",
    "rain",
    "corn",
    "chocolate",
    "ice cream",
    "salad",
}


class Draft(msgspec.Struct):
    """One example before its picture is stored; fields as in ``peftbench.data.example.Example``."""

    question: str
    answers: list[str]
    target: str
    question_type: str
    scene: Scene | None = None
    choices: list[str] = []
    answer_index: int = -1
    answer_type: str = ""
    facts: dict[str, object] = {}


def plural(name: str) -> str:
    """Return the plural of a concept's name."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith(("s", "sh", "ch", "x")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name in ("potato", "tornado"):
        return name + "es"
    return name + "s"


def with_article(name: str, adjective: str = "") -> str:
    """Return "a red apple", "an apple", "fries"."""
    phrase = f"{adjective} {name}".strip()
    if name in _NO_ARTICLE:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def annotate(rng: Random, main: str, others: Sequence[str] = (), agreement: float = 0.8) -> list[str]:
    """Return ten people's answers: each gives ``main`` with this chance, else one of the others."""
    return [main if not others or rng.random() < agreement else rng.choice(others) for _ in range(ANNOTATORS)]


def majority(answers: Sequence[str]) -> str:
    """Return the most common answer, the first one given where several tie (the training target)."""
    return max(dict.fromkeys(answers), key=answers.count)


def pick(rng: Random, *avoid: Concept, kind: str | None = None) -> Concept:
    """Return a random concept, of one kind if asked, that is none of ``avoid``."""
    pool = pack.of_kind(kind) if kind is not None else pack.concepts()
    return rng.choice([c for c in pool if c not in avoid])


def classified(rng: Random, *avoid: Concept) -> Concept:
    """Return a random concept that has a kind; every kind is equally likely."""
    return pick(rng, *avoid, kind=rng.choice(pack.kinds()))


def shuffled_choices(rng: Random, right: str, wrong: Sequence[str]) -> tuple[list[str], int]:
    """Return the choices in random order and where the right one is."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return choices, choices.index(right)
