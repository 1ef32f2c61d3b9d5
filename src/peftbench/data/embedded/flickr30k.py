"""Flickr30k-like captions (unseen): scenes of one to three things, five people's references, scored by CIDEr."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.pack import Concept
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import NUMBERS, Draft, pick, plural, with_article

REFERENCES = 5


def draft(rng: Random, split: str) -> Draft:
    """Draw one scene and its five references; the first person's wording is what training writes."""
    scene = Scene(rng, split)
    make = rng.choice((_one, _pair, _pair, _group, _group_and_one))
    frames, shown = make(rng, scene)
    references = [_say(rng, frames, plain=i == 0) for i in range(REFERENCES)]
    return Draft(
        question="",
        answers=references,
        target=references[0],
        question_type=make.__name__.strip("_"),
        scene=scene,
        facts={"objects": [c.name for c in shown], "names": {c.name: [c.name, *c.synonyms] for c in shown}},
    )


Frame = Callable[[Callable[[Concept], str]], str]


def _say(rng: Random, frames: list[Frame], plain: bool) -> str:
    """Word one reference; a person uses another attested name for a thing now and then."""

    def name(concept: Concept) -> str:
        if plain or not concept.synonyms or rng.random() < 0.6:
            return concept.name
        return rng.choice(concept.synonyms)

    frame = frames[0] if plain or rng.random() < 0.15 else rng.choice(frames)
    return frame(name)


def _one(rng: Random, scene: Scene) -> tuple[list[Frame], list[Concept]]:
    thing = pick(rng)
    style = scene.place(thing, rng.randint(40, 56), rng.randint(40, 56), rng.randint(44, 80))
    colour = pack.colour(thing.hex, style)
    return [
        lambda n: with_article(n(thing), colour),
        lambda n: with_article(n(thing)),
        lambda n: f"a picture of {with_article(n(thing), colour)}",
        lambda n: f"there is {with_article(n(thing), colour)}",
    ], [thing]


def _pair(rng: Random, scene: Scene) -> tuple[list[Frame], list[Concept]]:
    a = pick(rng)
    b = pick(rng, a)
    if rng.random() < 0.5:
        places, relation, inverse = ((25, 48), (71, 48)), "to the left of", "to the right of"
    else:
        places, relation, inverse = ((48, 25), (48, 71)), "above", "below"
    for concept, (x, y) in zip((a, b), places, strict=True):
        scene.place(concept, x, y, rng.randint(36, 44))
    return [
        lambda n: f"{with_article(n(a))} {relation} {with_article(n(b))}",
        lambda n: f"{with_article(n(b))} {inverse} {with_article(n(a))}",
        lambda n: f"{with_article(n(a))} and {with_article(n(b))}",
        lambda n: f"there is {with_article(n(a))} next to {with_article(n(b))}",
    ], [a, b]


def _group(rng: Random, scene: Scene) -> tuple[list[Frame], list[Concept]]:
    thing = pick(rng)
    n_things = rng.randint(2, 5)
    style = scene.style_for(thing)
    for cell in rng.sample(range(9), n_things):
        scene.place_in_cell(thing, cell, style)
    count = NUMBERS[n_things]
    return [
        lambda n: f"{count} {plural(n(thing))}",
        lambda n: f"a group of {count} {plural(n(thing))}",
        lambda n: f"there are {count} {plural(n(thing))}",
        lambda n: f"several {plural(n(thing))}",
    ], [thing]


def _group_and_one(rng: Random, scene: Scene) -> tuple[list[Frame], list[Concept]]:
    thing = pick(rng)
    other = pick(rng, thing)
    n_things = rng.randint(2, 4)
    style = scene.style_for(thing)
    cells = rng.sample(range(9), n_things + 1)
    for cell in cells[:-1]:
        scene.place_in_cell(thing, cell, style)
    scene.place_in_cell(other, cells[-1])
    count = NUMBERS[n_things]
    return [
        lambda n: f"{count} {plural(n(thing))} and {with_article(n(other))}",
        lambda n: f"{with_article(n(other))} with {count} {plural(n(thing))}",
        lambda n: f"there are {count} {plural(n(thing))} and {with_article(n(other))}",
        lambda n: f"{with_article(n(other))} and several {plural(n(thing))}",
    ], [thing, other]
