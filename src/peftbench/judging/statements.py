"""What a short English answer states about a picture whose contents are known: things, numbers, colours, places.

A rule, not a reader: it knows the names that the facts list, number and colour words, "A is left of B" and "more A
than B", and what a "no" before a name denies. Words that it does not know state nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Literal

import msgspec

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
COLOURS = set("red orange yellow green blue purple pink brown black white gray".split())
_NUMBER = {word: n for n, word in enumerate(NUMBERS)}
_NOT = set("no not none never without neither nor nothing cannot zero".split())
_CAUTIOUS = re.compile(
    r"\b(?:can ?not|could not|un(?:able|clear|known|sure|certain|answerable|determined)|"
    r"not (?:sure|clear|certain|possible|able|known|enough|provided)|do not know|"
    r"(?:hard|impossible|difficult) to|insufficient)\b"
)
_LINKS = set("a an the any or nor , single".split()) | COLOURS
_NOUN_PARTS = set("little big small large different other bright dark light".split()) | COLOURS | {"and"}
_BE = set("is are was were looks look appears color colored s".split())
_BETWEEN = set("is are was were to the a an on in at of side sits stands located placed and".split())
_WHERE = {"left": "left", "right": "right", "above": "above", "over": "above", "top": "above"}
_WHERE |= dict.fromkeys(("below", "under", "beneath", "underneath", "bottom"), "below")
_ENDS_NO = {*".;:!?,", "but", "with", "next", "near", "beside", "of", "than", *_WHERE}
_ENDS_NO |= set("tell say know determine answer what which how whether if".split())
_GONE = set("there visible present shown seen in depicted".split())


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a right answer to the question says."""

    says: list[list[str]] = []
    """One of each list of words."""
    never: list[str] = []
    """Words that no right answer says."""
    denies: list[str] = []
    """Names of what the question wrongly takes to be there."""
    about: str = ""
    """The thing that a bare number or colour is said of."""
    what: str = ""
    """``count`` or ``colour``: what is asked about it."""
    more: str = ""
    """Of two things, the one of which there are more."""
    fewer: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture shows; the part of an example's ``source`` that the judge reads."""

    names: dict[str, list[str]]
    """Thing -> all its names, also of several."""
    counts: dict[str, int]
    absent: list[str]
    """Names that nothing in the picture bears."""
    asked: Asked
    colours: dict[str, list[str]] = {}
    """Thing -> all colours that one could say it has."""
    places: dict[str, tuple[int, int]] = {}
    """Thing -> its centre (pixels from the left, from the top), of single things."""


class Mention(msgspec.Struct):
    """A name in an answer."""

    name: str
    thing: str
    """What is meant; "" for a name that is absent."""
    start: int
    end: int
    denied: bool = False


class Finding(msgspec.Struct, frozen=True):
    """One statement, and whether it is true."""

    kind: Literal["thing", "count", "colour", "place", "more", "word"]
    thing: str
    """What it is about."""
    text: str
    true: bool


def words_of(text: str) -> list[str]:
    """Lower-case words and marks; "isn't" is "is not", "dog's" is "dog", "grey" is "gray"."""
    text = (
        text.lower()
        .replace("’", "'")
        .replace("-", " ")
        .replace("can't", "can not")
        .replace("won't", "will not")
    )
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"'s?\b", "", text)
    swapped = {"grey": "gray", "colour": "color"}
    return [swapped.get(word, word) for word in re.findall(r"[^\W_]+|[.,;:!?]", text)]


@cache
def _key(name: str) -> tuple[str, ...]:
    return tuple(words_of(name))


class Statements:
    """The statements of one answer."""

    def __init__(self, facts: Facts, question: str, answer: str) -> None:
        self.facts = facts
        self.words = words_of(answer)
        self.asked_words = words_of(question)
        self._names = {_key(name): "" for name in facts.absent}
        for thing, names in facts.names.items():
            self._names |= {_key(name): thing for name in names}
        self._longest = max(map(len, self._names), default=1)
        in_question = list(self._find(self.asked_words))
        self._asked_things = {mention.thing for mention in in_question} - {""}
        self._asked_names = {mention.name for mention in in_question}
        self.mentions = list(self._find(self.words))
        self.cautious = _CAUTIOUS.search(" ".join(self.words)) is not None
        """Whether the answer says that something cannot be told."""
        self._deny()
        self._attached: set[int] = set()
        """Places of numbers and colours that belong to a name."""
        self._coloured: set[str] = set()
        """Things with a colour that belongs to their name."""

    def findings(self) -> list[Finding]:
        """All statements, each once."""
        # the bare ones come last: they need to know what belongs to a name
        found = [*self._things(), *self._numbers(), *self._colours(), *self._places(), *self._more()]
        found += [*self._bare(), *self._words()]
        return list(dict.fromkeys(found))

    def says(self, text: str) -> bool:
        """Whether a word or name occurs and is not denied."""
        wanted = words_of(text)
        return any(
            self.words[at : at + len(wanted)] == wanted and not self._negated(at)
            for at in range(len(self.words) - len(wanted) + 1)
        )

    def denies(self) -> bool:
        """Whether the answer points out that what the question takes to be there is not."""
        denied = any(m.denied for m in self.mentions if m.name in self.facts.asked.denies)
        return denied or (not self.cautious and bool(_NOT & set(self.words)))

    def _find(self, words: list[str]) -> Iterator[Mention]:
        at = 0
        while at < len(words):
            for n in range(min(self._longest, len(words) - at), 0, -1):
                name = tuple(words[at : at + n])
                if name in self._names:
                    yield Mention(" ".join(name), self._names[name], at, at + n)
                    at += n
                    break
            else:
                at += 1

    def _deny(self) -> None:
        """A name is denied by a "no" up to five words before it, or "is not there" behind it; "or" hands it on."""
        last: Mention | None = None
        for mention in self.mentions:
            joined = last is not None and last.denied and set(self.words[last.end : mention.start]) <= _LINKS
            after = self.words[mention.end : mention.end + 4]
            gone = after[:1] != [] and after[0] in _BE and "not" in after[:2] and bool(_GONE & set(after))
            mention.denied = joined or gone or self._negated(mention.start)
            last = mention

    def _negated(self, start: int) -> bool:
        for word in reversed(self.words[max(0, start - 5) : start]):
            if word in _ENDS_NO:
                return False
            if word in _NOT:
                return True
        return False

    def _things(self) -> Iterator[Finding]:
        for mention in self.mentions:
            if not mention.thing:
                wrong = mention.name in self.facts.asked.denies and not self.cautious
                if not mention.denied and (wrong or mention.name not in self._asked_names):
                    yield Finding("thing", mention.name, f"{mention.name} is there", False)
            elif not mention.denied:
                if mention.thing not in self._asked_things:
                    yield Finding("thing", mention.thing, f"{mention.thing} is there", True)
            elif {"no", "without"} & set(self.words[max(0, mention.start - 2) : mention.start]):
                # other words of denial before a thing that is there rather deny what is said of it
                yield Finding("thing", mention.thing, f"{mention.thing} is not there", False)

    def _before(self, mention: Mention) -> Iterator[tuple[int, str]]:
        """Words that describe a name, from the nearest to the farthest."""
        at = mention.start - 1
        while at >= 0:
            yield at, self.words[at]
            if self.words[at] not in _NOUN_PARTS:
                return
            at -= 1

    def _numbers(self) -> Iterator[Finding]:
        for mention in self.mentions:
            for at, word in self._before(mention):
                n = _number(word)
                if n and mention.thing and not mention.denied:
                    self._attached.add(at)
                    yield self._count(mention.thing, n)

    def _count(self, thing: str, n: int) -> Finding:
        true = self.facts.counts[thing] == n
        return Finding("count", thing, f"{thing}: {n}", true)

    def _colours(self) -> Iterator[Finding]:
        for mention in self.mentions:
            said = [(at, word) for at, word in self._before(mention) if word in COLOURS]
            at = mention.end
            while at < len(self.words) and self.words[at] in _BE:
                at += 1
            if at > mention.end:
                while at < len(self.words) and (self.words[at] in COLOURS or self.words[at] == "and"):
                    said += [(at, self.words[at])] if self.words[at] in COLOURS else []
                    at += 1
            self._attached |= {place for place, _ in said}
            if said and mention.thing and not mention.denied:
                self._coloured.add(mention.thing)
                yield self._colour(mention.thing, [word for _, word in said])

    def _colour(self, thing: str, said: list[str]) -> Finding:
        """Right where one of the colours said is right: a thing may have several."""
        known = self.facts.colours.get(thing) or COLOURS
        return Finding("colour", thing, f"{thing}: {' and '.join(said)}", bool(set(said) & set(known)))

    def _places(self) -> Iterator[Finding]:
        here = [m for m in self.mentions if m.thing in self.facts.places and not m.denied]
        for a, b in pairwise(here):
            between = [w for w in self.words[a.end : b.start] if w not in _BETWEEN | COLOURS | _NUMBER.keys()]
            if a.thing != b.thing and len(between) == 1 and between[0] in _WHERE:
                where = _WHERE[between[0]]
                (ax, ay), (bx, by) = self.facts.places[a.thing], self.facts.places[b.thing]
                true = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[where]
                yield Finding("place", a.thing, f"{a.thing} {where} {b.thing}", true)

    def _more(self) -> Iterator[Finding]:
        asked = self.facts.asked
        if not asked.more:
            return
        here = [m for m in self.mentions if m.thing in (asked.more, asked.fewer) and not m.denied]
        for mention in here[:1]:
            before = self.words[: mention.start]
            least = any(word in ("fewer", "less", "fewest", "least") for word in before)
            ranked = (
                least or any(word in ("more", "most") for word in before) or len({m.thing for m in here}) == 1
            )
            if ranked:
                true = (mention.thing == asked.more) is not least
                yield Finding("more", asked.more, "which there are more of", true)

    def _bare(self) -> Iterator[Finding]:
        """Numbers and colours that belong to no name are said of what is asked about."""
        asked = self.facts.asked
        own = [m for m in self.mentions if m.thing == asked.about and m.start - 1 in self._attached]
        free = [(at, word) for at, word in enumerate(self.words) if at not in self._attached]
        if asked.what == "count" and not own:
            numbers = [n for n in (_number(word) for _, word in free) if n is not None]
            if numbers:
                yield self._count(asked.about, numbers[0])
        elif asked.what == "colour" and asked.about not in self._coloured:
            colours = [word for at, word in free if word in COLOURS and not self._negated(at)]
            if colours:
                yield self._colour(asked.about, colours)

    def _words(self) -> Iterator[Finding]:
        for word in self.facts.asked.never:
            if self.says(word) and word not in self.asked_words:
                yield Finding("word", word, f"it is {word}", False)


def _number(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) < 6 else _NUMBER.get(word)
