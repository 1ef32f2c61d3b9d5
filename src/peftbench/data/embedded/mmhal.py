"""MMHal-like questions (evaluation only): eight types in turn that invite naming what is not in the picture.

Everything in a picture is known, so ``source`` can say what an answer may state (read by ``peftbench.judging.facts``):
``objects`` with all their ``names``, ``counts``, ``colours`` (all that one could say of each, measured), ``places``
(centres in pixels, of single things), the names that are ``absent``, and what the question has ``asked``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import AUTHORS, PLACES
from peftbench.data.embedded.pack import Concept
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import NUMBERS, Draft, pick, plural, with_article

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
PART = 6
"""A colour is one of a drawing's where at least one in so many of its pixels has it."""
WEATHER = {
    "sun": ("sunny", "sun", "sunshine"),
    "cloud": ("cloudy", "cloud", "clouds", "overcast"),
    "rain": ("rainy", "rain", "raining"),
    "tornado": ("stormy", "storm", "tornado", "windy"),
}
_ABOVE = {(25, 48): ("left", "right"), (48, 25): ("above", "below")}


class _Known:
    """What a picture holds, noted while it is drawn."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.rng = scene.rng
        self.counts: dict[Concept, int] = {}
        self.styles: dict[Concept, str] = {}
        self.places: dict[str, tuple[int, int]] = {}
        self.contents: list[str] = []

    def one(self, concept: Concept, x: int, y: int, size: int) -> None:
        """Draw a thing centred on (x, y)."""
        self.styles[concept] = self.scene.place(concept, x, y, size)
        self.counts[concept] = 1
        self.places[concept.name] = (x, y)
        self.contents.append(with_article(concept.name, self.colour(concept)))

    def two(self, a: Concept, b: Concept) -> tuple[str, str]:
        """Draw two things beside or above each other; return where the first is, and where the second."""
        first = self.rng.choice(tuple(_ABOVE))
        self.one(a, *first, self.rng.randint(36, 44))
        self.one(b, 96 - first[0], 96 - first[1], self.rng.randint(36, 44))
        self.contents.append(_placed(a.name, b.name, _ABOVE[first][0]))
        return _ABOVE[first]

    def groups(self, *wanted: tuple[Concept, int]) -> None:
        """Draw several things of each concept, scattered over the grid."""
        cells = self.rng.sample(range(9), sum(n for _, n in wanted))
        for concept, n in wanted:
            self.styles[concept] = style = self.scene.style_for(concept)
            mine, cells = cells[:n], cells[n:]
            for cell in mine:
                self.scene.place_in_cell(concept, cell, style)
            self.counts[concept] = n
            if n == 1:
                self.places[concept.name] = (mine[0] % 3 * 32 + 16, mine[0] // 3 * 32 + 16)
            self.contents.append(_some(concept, n, self.colour(concept)))

    def colour(self, concept: Concept) -> str:
        """The colour that the drawing has beyond dispute; "" for none."""
        return clear_colour(concept, self.styles[concept])

    def facts(self, asked: dict[str, object]) -> dict[str, object]:
        """The row's ``source``."""
        shown = list(self.counts)
        return {
            "image_content": self.contents,
            "objects": [concept.name for concept in shown],
            "names": {concept.name: _names(concept) for concept in shown},
            "counts": {concept.name: n for concept, n in self.counts.items()},
            "colours": {concept.name: sayable(concept, self.styles[concept]) for concept in shown},
            "places": self.places,
            "absent": _absent(shown),
            "asked": asked,
        }


def draft_in_turn(rng: Random, split: str, index: int) -> Draft:
    """Draw the question of an index: the eight types of MMHal-Bench follow each other."""
    known = _Known(Scene(rng, split))
    kind = tuple(_TYPES)[index % len(_TYPES)]
    question, answer, asked = _TYPES[kind](rng, known, index // len(_TYPES))
    return Draft(
        question=question,
        answers=[answer],
        target=answer,
        question_type=kind,
        scene=known.scene,
        facts=known.facts(asked),
    )


def _attribute(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    thing = _coloured(rng, known.scene.split)
    known.two(thing, _unlike(rng, thing))
    colour = known.colour(thing)
    verb = _verb(thing)
    return (
        f"What color {verb} the {thing.name}?",
        f"the {thing.name} {verb} {colour}",
        {"about": thing.name, "what": "colour", "says": [sayable(thing, known.styles[thing])]},
    )


def _adversarial(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    a = pick(rng)
    b = _unlike(rng, a)
    known.two(a, b)
    missing = rng.choice([c for c in pack.concepts() if not _related(c, (a, b))])
    question = (
        f"What color {_verb(missing)} the {missing.name} next to the {a.name}?",
        f"How many {plural(missing.name)} are there beside the {a.name}?",
    )[turn % 2]
    answer = f"there is no {missing.name} in the picture, there is {with_article(a.name)} and {with_article(b.name)}"
    return question, answer, {"denies": _names(missing)}


def _comparison(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    a = pick(rng)
    b = _unlike(rng, a)
    n_a, n_b = rng.choice(
        [(x, y) for x in range(1, 6) for y in range(1, 6) if abs(x - y) >= 2 and x + y <= 8]
    )
    known.groups((a, n_a), (b, n_b))
    more, fewer = (a, b) if n_a > n_b else (b, a)
    high, low = max(n_a, n_b), min(n_a, n_b)
    return (
        f"Are there more {plural(a.name)} or more {plural(b.name)} in the picture?",
        f"there are more {plural(more.name)} than {plural(fewer.name)}: {_some(more, high)} and {_some(fewer, low)}",
        {"more": more.name, "fewer": fewer.name},
    )


def _counting(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    thing = pick(rng)
    n = rng.randint(1, 5)
    known.groups((thing, n), (_unlike(rng, thing), rng.randint(1, 2)))
    return (
        f"How many {plural(thing.name)} are there in the picture?",
        f"there {'is' if n == 1 else 'are'} {_some(thing, n)}",
        {"about": thing.name, "what": "count", "says": [[NUMBERS[n], str(n)]]},
    )


def _relation(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    a = pick(rng)
    b = _unlike(rng, a)
    where, _ = known.two(a, b)
    return (
        f"What is {_WORDS[where]} the {b.name}?",
        f"{with_article(a.name, known.colour(a))} is {_WORDS[where]} the {b.name}",
        {"says": [_names(a)]},
    )


def _environment(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    if turn % 2:
        sky = rng.choice([c for c in pack.concepts() if c.name in WEATHER])
        known.one(sky, rng.randint(36, 60), 24, rng.randint(34, 44))
        thing = rng.choice([c for c in pack.concepts() if c.kind != sky.kind and not _related(c, (sky,))])
        known.one(thing, rng.randint(36, 60), 70, rng.randint(36, 44))
        wrong = [word for name, words in WEATHER.items() if name != sky.name for word in words]
        return (
            "What is the weather like in this picture?",
            f"it is {WEATHER[sky.name][0]}, there is {with_article(sky.name)} above {with_article(thing.name)}",
            {"says": [list(WEATHER[sky.name])], "never": [w for w in wrong if w not in _names(sky)]},
        )
    # birds are left out: neither chickens nor penguins are found in the sky
    thing = rng.choice([c for c in pack.concepts() if c.kind in PLACES and c.kind != "bird"])
    known.groups((thing, rng.randint(2, 4)))
    usual = PLACES[thing.kind]
    elsewhere = {place for places in PLACES.values() for place in places} - set(usual)
    return (
        f"Where would one usually find the {plural(thing.name)} in this picture?",
        f"{plural(thing.name)} are usually found in the {usual[0]} or the {usual[1]}",
        {"says": [list(usual)], "never": sorted(elsewhere - {w for c in known.counts for w in _names(c)})},
    )


def _holistic(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    a = pick(rng)
    b = _unlike(rng, a)
    if turn % 2:
        known.groups((a, rng.randint(2, 4)), (b, 1))
        answer = f"there are {_some(a, known.counts[a], known.colour(a))} and {with_article(b.name, known.colour(b))}"
    else:
        where, _ = known.two(a, b)
        first, second = (with_article(c.name, known.colour(c)) for c in (a, b))
        answer = f"{first} {_WORDS[where]} {second}"
    question = "Describe this picture in detail." if turn % 4 < 2 else "What can be seen in this picture?"
    return question, answer, {"says": [[*_names(a), *_names(b)]]}


def _other(rng: Random, known: _Known, turn: int) -> tuple[str, str, dict[str, object]]:
    if turn % 2:
        word = rng.choice(AUTHORS)
        known.one(pick(rng), rng.randint(40, 56), 34, rng.randint(36, 48))
        known.scene.write(word, 78)
        known.contents.append(f"the word {word}")
        return (
            "What is written in the picture?",
            f"the word {word} is written below {known.contents[0]}",
            {"says": [[word]], "never": [name for name in AUTHORS if name != word]},
        )
    thing = rng.choice([c for c in pack.concepts() if c.kind in pack.kinds() and c.name not in WEATHER])
    other = rng.choice([c for c in pack.concepts() if c.kind != thing.kind and not _related(c, (thing,))])
    known.two(thing, other)
    return (
        f"What kind of thing {_verb(thing)} the {thing.name}?",
        f"the {thing.name} {_verb(thing)} a kind of {thing.kind}",
        {"says": [sorted(_general(thing))], "never": sorted(set(pack.kinds()) - _supported(thing))},
    )


_TYPES = {
    "attribute": _attribute,
    "adversarial": _adversarial,
    "comparison": _comparison,
    "counting": _counting,
    "relation": _relation,
    "environment": _environment,
    "holistic": _holistic,
    "other": _other,
}
_WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def _placed(a: str, b: str, where: str) -> str:
    return f"the {a} is {_WORDS[where]} the {b}"


def _some(concept: Concept, n: int, colour: str = "") -> str:
    """Return "one dog", "three red apples"."""
    return " ".join(filter(None, [NUMBERS[n], colour, concept.name if n == 1 else plural(concept.name)]))


def _verb(concept: Concept) -> str:
    return "are" if plural(concept.name) == concept.name and concept.name.endswith("s") else "is"


def _unlike(rng: Random, *shown: Concept) -> Concept:
    """A thing that shares no name or kind with those shown, so that what is said is about one of them alone."""
    return rng.choice([c for c in pack.concepts() if not _related(c, shown)])


def _coloured(rng: Random, split: str) -> Concept:
    """A thing with one dominant colour in the hand of each of the split's artists."""

    def colours(concept: Concept) -> bool:
        styles = [style for style in pack.STYLES[split] if style in concept.styles]
        return all(clear_colour(concept, style) for style in styles)

    return rng.choice([c for c in pack.concepts() if colours(c)])


@cache
def sayable(concept: Concept, style: str) -> list[str]:
    """All colours that one could say a drawing has: those of a good part of it, and those that its main one is near."""
    import numpy as np

    image = pack.sprite(concept.hex, style)
    opaque = np.asarray(image.getchannel("A")) > 200
    hsv = np.asarray(image.convert("RGB").convert("HSV"))[opaque]
    counted = pack._colour_names(hsv)
    colours = {name for name, n in counted.items() if n * PART >= counted.total()}
    return sorted(colours | _near_colours(*(int(value) for value in np.median(hsv, axis=0))))


def _near_colours(hue: int, saturation: int, value: int) -> set[str]:
    """Other words for a middle colour: people call greyish blue gray, and dark orange brown (HSV in 0..255)."""
    near = set()
    if saturation < 60 and value < 225:
        near |= {"black", "gray"} if value < 80 else {"gray"}
    if (5 <= hue < 22 and value < 225) or (hue < 22 and saturation < 130):
        near.add("brown")
    if 20 <= hue < 34 and saturation >= 100:
        near |= {"orange", "yellow"}
    return near


@cache
def clear_colour(concept: Concept, style: str) -> str:
    """The colour that dominates a drawing, where no person would call it another; "" elsewhere."""
    colour = pack.colour(concept.hex, style)
    disputed = {"black", "brown", "gray"} & set(sayable(concept, style)) - {colour}
    return "" if disputed else colour


@cache
def _names(concept: Concept) -> list[str]:
    """All attested names, one and several; without those that say a colour too, which would hide a wrong one."""
    names = [name for name in (concept.name, *concept.synonyms) if not set(name.split()) & set(COLOURS)]
    return list(dict.fromkeys([*names, *map(plural, names)]))


@cache
def _general(concept: Concept) -> frozenset[str]:
    """Its kind and WordNet's hypernyms, one and several, also by their last words alone."""
    general = [*([concept.kind] if concept.kind else []), *concept.hypernyms]
    names = [*general, *(name.split()[-1] for name in general)]
    return frozenset([*names, *map(plural, names)])


@cache
def _supported(concept: Concept) -> frozenset[str]:
    """What may be said of a thing: its names, the words in them, and what it is in general."""
    words = [word for name in _names(concept) for word in name.split()]
    return frozenset([*_names(concept), *words]) | _general(concept)


@cache
def _related_names(concept: Concept) -> frozenset[str]:
    return frozenset([*_names(concept), *([concept.kind] if concept.kind else [])])


def _related(concept: Concept, shown: Sequence[Concept]) -> bool:
    """Whether something that is said of this thing could be meant of one that is shown."""
    return any(
        concept is other
        or _related_names(concept) & _supported(other)
        or _related_names(other) & _supported(concept)
        for other in shown
    )


def _absent(shown: Sequence[Concept]) -> list[str]:
    """All names and kinds of the pack that nothing shown bears."""
    there = frozenset().union(*map(_supported, shown))
    names = {name for concept in pack.concepts() for name in _names(concept)}
    names |= {form for kind in pack.kinds() for form in (kind, plural(kind))}
    return sorted(names - there)
