"""What a short English answer states about a picture whose contents are known: things, numbers, colours, places.

A rule, not a reader: it knows the names that the facts list, number and colour words, "A is left of B" and "more A
than B", and what a "no" before a name denies. Words that it does not know state nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
COLOURS = set("red orange yellow green blue purple pink brown black white gray".split())
_NUMBER = {word: n for n, word in enumerate(NUMBERS)}
_NOT = set("no not none never without neither nor nothing cannot zero".split())
_CAUTIOUS = (
    r"\b(?:can ?not|can't|could not|couldn't|un(?:able|clear|known|sure|certain|answerable|determined)|not (?:sure|clear|"
    r"certain|possible|able|known|enough|provided)|don't know|do not know|(?:hard|impossible|difficult) to|insufficient)\b"
)
_LINKS = set("a an the any or nor and , single".split()) | COLOURS
_NOUN_PARTS = set("little big small large different other bright dark light".split()) | COLOURS | {"and"}
_BE = set("is are was were looks look appears color colored s".split())
_BETWEEN = set("is are was were to the a an on in at of side sits stands located placed and".split())
_WHERE = {"left": "left", "right": "right", "above": "above", "over": "above", "top": "above"}
_WHERE |= {word: "below" for word in ("below", "under", "beneath", "underneath", "bottom")}
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

    text: str
    true: bool


def is_cautious(answer: str) -> bool:
    """Whether an answer says that something cannot be told."""
    return re.search(_CAUTIOUS, answer.lower().replace("’", "'")) is not None


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
    return [swapped.get(word, word) for word in re.findall(r"[a-z0-9]+|[.,;:!?]", text)]


class Statements:
    """The statements of one answer."""

    def __init__(self, facts: Facts, question: str, answer: str) -> None:
        self.facts = facts
        self.words = words_of(answer)
        self.asked_words = set(words_of(question))
        self._names = {tuple(words_of(name)): "" for name in facts.absent}
        for thing, names in facts.names.items():
            self._names |= {tuple(words_of(name)): thing for name in names}
        self._longest = max(map(len, self._names), default=1)
        self.mentions = list(self._find())
        self._deny()
        self._attached: set[int] = set()
        """Places of numbers and colours that belong to a name."""

    def findings(self) -> list[Finding]:
        """All statements, each once, in the order in which their kinds are looked for."""
        found = [*self._things(), *self._numbers(), *self._colours(), *self._places(), *self._more()]
        found += [*self._bare(), *self._words()]
        return list(dict.fromkeys(found))

    def says(self, text: str) -> bool:
        """Whether a word or name occurs and is not denied."""
        wanted = words_of(text)
        for at in range(len(self.words) - len(wanted) + 1):
            if self.words[at : at + len(wanted)] == wanted and not self._negated(at):
                return True
        return False

    def denies(self) -> bool:
        """Whether the answer says that something is not there."""
        return any(mention.denied for mention in self.mentions) or bool(_NOT & set(self.words))

    def _find(self) -> Iterator[Mention]:
        at = 0
        while at < len(self.words):
            for n in range(min(self._longest, len(self.words) - at), 0, -1):
                name = tuple(self.words[at : at + n])
                if name in self._names:
                    yield Mention(" ".join(name), self._names[name], at, at + n)
                    at += n
                    break
            else:
                at += 1

    def _deny(self) -> None:
        """A "no" up to four words before a name denies it, and the names that "or" or "and" joins to it."""
        last: Mention | None = None
        for mention in self.mentions:
            joined = (
                last is not None
                and last.denied
                and set(self.words[last.end : mention.start]) <= _LINKS - {"and"}
            )
            after = self.words[mention.end : mention.end + 4]
            gone = "not" in after[:2] and bool(_GONE & set(after)) and bool(_BE & set(after[:1]))
            mention.denied = joined or gone or self._negated(mention.start)
            last = mention

    def _negated(self, start: int) -> bool:
        before = self.words[max(0, start - 5) : start]
        for word in reversed(before):
            if word in ".;:!?," or word in ("but", "with", "next", "of", "than"):
                return False
            if word in _NOT:
                return True
        return False

    def _things(self) -> Iterator[Finding]:
        for mention in self.mentions:
            in_question = set(mention.name.split()) <= self.asked_words
            asked_absent = mention.name in self.facts.asked.denies
            if not mention.thing and not mention.denied and (asked_absent or not in_question):
                yield Finding(f"{mention.name} is not there", False)
            elif mention.thing and mention.denied and not self._may_deny(mention):
                yield Finding(f"{mention.thing} is there", False)
            elif mention.thing and not mention.denied and not in_question:
                yield Finding(f"{mention.thing} is there", True)

    def _may_deny(self, mention: Mention) -> bool:
        """Whether the "no" is about something else: "no, the dog", "not enough", "it cannot be told"."""
        before = self.words[max(0, mention.start - 4) : mention.start]
        return not ({"no", "without", "zero", "any"} & set(before)) and mention.thing in self.facts.names

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
                if n is not None and mention.thing and n:
                    self._attached.add(at)
                    yield self._count(mention.thing, n)

    def _count(self, thing: str, n: int) -> Finding:
        true = self.facts.counts[thing] == n
        return Finding(f"{thing}: {self.facts.counts[thing]}, not {n}" if not true else f"{thing}: {n}", true)

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
                yield self._colour(mention.thing, [word for _, word in said])

    def _colour(self, thing: str, said: list[str]) -> Finding:
        """Right where one of the colours said is right: a thing may have several."""
        known = self.facts.colours.get(thing, COLOURS)
        return Finding(f"{thing}: {' and '.join(said)}", not known or bool(set(said) & set(known)))

    def _places(self) -> Iterator[Finding]:
        here = [m for m in self.mentions if m.thing in self.facts.places and not m.denied]
        for a, b in zip(here, here[1:], strict=False):
            between = [w for w in self.words[a.end : b.start] if w not in _BETWEEN | COLOURS | _NUMBER.keys()]
            if a.thing != b.thing and len(between) == 1 and between[0] in _WHERE:
                where = _WHERE[between[0]]
                (ax, ay), (bx, by) = self.facts.places[a.thing], self.facts.places[b.thing]
                true = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[where]
                yield Finding(f"{a.thing} {where} {b.thing}", true)

    def _more(self) -> Iterator[Finding]:
        asked = self.facts.asked
        if not asked.more:
            return
        here = [m for m in self.mentions if m.thing in (asked.more, asked.fewer) and not m.denied]
        text = f"more {asked.more} than {asked.fewer}"
        for mention in here[:1]:
            before = self.words[: mention.start]
            least = any(word in ("fewer", "less", "fewest", "least") for word in before)
            ranked = (
                least or any(word in ("more", "most") for word in before) or len({m.thing for m in here}) == 1
            )
            if ranked:
                yield Finding(text, (mention.thing == asked.more) is not least)

    def _bare(self) -> Iterator[Finding]:
        """Numbers and colours that belong to no name are said of what is asked about."""
        asked = self.facts.asked
        if not asked.about:
            return
        free = [word for at, word in enumerate(self.words) if at not in self._attached]
        if asked.what == "count":
            # with a number of its own, "one" and the like elsewhere are no numbers of it
            numbers = [n for n in map(_number, free) if n is not None]
            if numbers and not any(
                m.thing == asked.about and m.start - 1 in self._attached for m in self.mentions
            ):
                yield self._count(asked.about, numbers[0])
        elif asked.what == "colour":
            colours = [word for word in free if word in COLOURS]
            if colours and not self._attached:
                yield self._colour(asked.about, colours)

    def _words(self) -> Iterator[Finding]:
        for word in self.facts.asked.never:
            if self.says(word) and word not in self.asked_words:
                yield Finding(f"it is not {word}", False)


def _number(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) < 6 else _NUMBER.get(word)
