"""CHAIR: objects that a caption mentions and the image lacks, by caption (s) and by mention (i).

Source: ``utils/chair.py`` of LisaAnne/Hallucination (6e4d33c). A caption's words are made singular
(``_singular``), pairs that name one object are joined, "seat" is dropped where there is a "toilet", and what
is left is looked up in groups of synonyms. The image has its annotated objects and those that its reference
captions mention. CHAIR-s: captions with at least one object that the image lacks; CHAIR-i: such mentions
among all mentions (repeats count).

The vocabulary is a setting. ``synonyms`` names a file in the official format (one group per line, ``", "``
between names, the first one stands for the group); the list for MSCOCO belongs to that repository and is not
part of this one. With ``rules: coco`` its pairs apply, with their slips: after the singular, "bus" ("bu") and
"ties" ("ty") never match. Without a file the vocabulary is what the examples' own scenes name (``source``:
``objects`` and their ``names``), and names of several words are matched as a whole, the longest first.

Words are cut by a restatement of NLTK's word tokenizer without its model of sentences: a period ends a word
unless a letter or digit follows. Without any mention, CHAIR-i is 0 here; the official code divides by zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftbench.errors import UserError
from peftbench.metrics._singular import singular
from peftbench.metrics.base import (
    MetricResult,
    MetricSettings,
    check_lengths,
    finish,
    read_settings,
    source_of,
)

if TYPE_CHECKING:
    from peftbench.data.example import Example

_WORD = re.compile(
    r"\.\.\.|n't\b|'(?:s|m|d|ll|re|ve)\b|[^\s,;:!?()\[\]{}<>\"“”…'.]+?(?=n't\b)"
    r"|[^\s,;:!?()\[\]{}<>\"“”…'.]+(?:[.,:'](?!(?:s|m|d|ll|re|ve)\b)[^\s,;:!?()\[\]{}<>\"“”…'.]+)*"
)
_PAIRS = [
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "bow tie",
    "laptop computer",
    "stove top oven",
    "home plate",
]
_ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)
_VEHICLES = ("jet", "train")


class Settings(MetricSettings, frozen=True, kw_only=True):
    """Settings of CHAIR."""

    synonyms: str | None = None
    """File of synonym groups; None: the names of the examples' own scenes."""
    rules: Literal["names", "coco"] = "names"
    """``coco``: the official pairs of words for MSCOCO; ``names``: names of several words as they are."""


class Vocabulary:
    """Synonym groups and the rules by which a caption's words are looked up in them."""

    def __init__(self, groups: Sequence[Sequence[str]], rules: str) -> None:
        self.node = {name: group[0] for group in groups for name in group}
        self.coco = rules == "coco"
        self.joined: dict[str, str] = {}
        if self.coco:
            self.joined = {pair: pair for pair in _PAIRS}
            for animal in _ANIMALS:
                self.joined |= {f"baby {animal}": animal, f"adult {animal}": animal}
            self.joined |= {f"passenger {vehicle}": vehicle for vehicle in _VEHICLES}
            self.joined |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
        else:
            named: dict[str, str] = {}
            for name, node in self.node.items():
                named.setdefault(" ".join(map(self.form, words_of(name))), node)
            self.node = named
            self.joined = {name: name for name in self.node if " " in name}
        self.longest = max((name.count(" ") + 1 for name in self.joined), default=1)
        if self.coco:
            self.longest = 2  # the official loop looks at two words, so "stove top oven" is two ovens

    def form(self, word: str) -> str:
        """The form in which a word is looked up: the official singular.

        For names, that of the singular and so on, so that the slips of its rules ("glasses", "glass",
        "glas") put no name out of reach. Of rules that lead back (a lone quotation mark) the first form of the
        circle in the alphabet, so that all of them are one.
        """
        one = singular(word)
        if self.coco:
            return one
        passed = [word]
        while one not in passed:
            passed.append(one)
            one = singular(one)
        return min(passed[passed.index(one) :])

    def mentions(self, caption: str) -> list[str]:
        """The groups that a caption's words name, in their order, repeats kept."""
        words = [self.form(word) for word in words_of(caption)]
        out = []
        place = 0
        while place < len(words):
            for size in range(min(self.longest, len(words) - place), 1, -1):
                joined = self.joined.get(" ".join(words[place : place + size]))
                if joined is not None:
                    out.append(joined)
                    place += size
                    break
            else:
                out.append(words[place])
                place += 1
        if self.coco and "toilet" in out:
            out = [word for word in out if word != "seat"]
        return [self.node[word] for word in out if word in self.node]


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, clitics apart, punctuation left out."""
    return _WORD.findall(text.lower())


def read_synonyms(path: Path) -> list[list[str]]:
    """Synonym groups of a file in the official format; its spaces and capitals count, as they do there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"synonyms {path}: {error.strerror}: check the setting") from None
    groups = [line.strip().split(", ") for line in lines if line.strip()]
    if not groups:
        raise UserError(f"synonyms {path}: no groups: write one per line, with ', ' between names")
    return groups


def score(predictions: Sequence[str], examples: Sequence[Example], settings: dict[str, Any]) -> MetricResult:
    """CHAIR-s (0-100, lower is better), with CHAIR-i, recall and each caption's hallucinated objects."""
    typed = read_settings(Settings, settings, "chair")
    check_lengths(predictions, examples)
    facts = [source_of(example) for example in examples]
    for example, fact in zip(examples, facts, strict=True):
        if not isinstance(fact.get("objects"), list):
            raise UserError(f"row {example.id!a} has no list of objects: chair needs what the image shows")
    if typed.synonyms is None and typed.rules == "coco":
        raise UserError(
            "metric chair: rules coco needs the setting synonyms: the official synonyms.txt for MSCOCO"
        )
    groups = _scene_groups(facts) if typed.synonyms is None else read_synonyms(Path(typed.synonyms))
    vocabulary = Vocabulary(groups, typed.rules)
    scores: list[float] = []
    wrong_words: list[list[str]] = []
    counts: list[tuple[int, int]] = []
    recalled = present = 0
    for text, example, fact in zip(predictions, examples, facts, strict=True):
        annotated = {
            node for name in fact["objects"] for node in vocabulary.mentions(str(name)) or [str(name)]
        }
        truth = annotated | {node for caption in example.answers for node in vocabulary.mentions(caption)}
        mentioned = vocabulary.mentions(text)
        wrong = [node for node in mentioned if node not in truth]
        scores.append(100.0 if wrong else 0.0)
        wrong_words.append(wrong)
        counts.append((len(wrong), len(mentioned)))
        recalled += len(annotated & set(mentioned))
        present += len(annotated)
    mentions = sum(total for _, total in counts)
    extra: dict[str, Any] = {
        "chair_s": sum(scores) / len(scores),
        "chair_i": 100 * sum(wrong for wrong, _ in counts) / mentions if mentions else 0.0,
        "chair_i_stderr": _ratio_error(counts),
        "mentions": mentions,
        "recall": 100 * recalled / present if present else 0.0,
        "no_mention": sum(total == 0 for _, total in counts),
        "rules": typed.rules,
    }
    columns: dict[str, list[Any]] = {
        "hallucinated": [", ".join(words) for words in wrong_words],
        "mentions": [total for _, total in counts],
    }
    return finish(scores, examples, typed, extra, higher_is_better=False, columns=columns)


def _scene_groups(facts: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One group per object that any scene has, with all the names that scenes give it."""
    groups: dict[str, dict[str, None]] = {}
    for fact in facts:
        names = fact.get("names") if isinstance(fact.get("names"), dict) else {}
        for name in fact["objects"]:
            given = names.get(name, []) if names else []
            groups.setdefault(str(name), {str(name): None}).update(dict.fromkeys(map(str, given)))
    owners: dict[str, set[str]] = {}
    for node, group in groups.items():
        for name in group:
            owners.setdefault(name, set()).add(node)
    # A name that several objects share accuses nobody: it would be held against the wrong one.
    return [
        [node, *(n for n in group if n != node and owners[n] == {node})] for node, group in groups.items()
    ]


def _ratio_error(counts: Sequence[tuple[int, int]]) -> float:
    """Standard error of CHAIR-i (0-100) as a ratio of sums over captions, linearised."""
    n, total = len(counts), sum(mentions for _, mentions in counts)
    if n < 2 or not total:
        return 0.0
    ratio = sum(wrong for wrong, _ in counts) / total
    squares = sum((wrong - ratio * mentions) ** 2 for wrong, mentions in counts)
    return float(100 * (n / (n - 1) * squares) ** 0.5 / total)
