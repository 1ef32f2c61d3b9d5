"""VQAv2-like questions (seen): what, which colour, how many, is there; ten answers with little disagreement."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import Draft, annotate, majority, pick, plural


def draft(rng: Random, split: str) -> Draft:
    """Draw one question with its picture; the four types in VQAv2's rough proportions."""
    scene = Scene(rng, split)
    chance = rng.random()
    if chance < 0.35:
        return _is_there(rng, scene)
    if chance < 0.55:
        return _how_many(rng, scene)
    if chance < 0.75:
        coloured = _colour(rng, scene)
        if coloured is not None:
            return coloured
    return _what(rng, scene)


def _finish(scene: Scene, question: str, answers: list[str], question_type: str, answer_type: str) -> Draft:
    return Draft(
        question=question,
        answers=answers,
        target=majority(answers),
        question_type=question_type,
        answer_type=answer_type,
        scene=scene,
    )


def _is_there(rng: Random, scene: Scene) -> Draft:
    shown = [pick(rng)]
    shown.append(pick(rng, *shown))
    for concept, cell in zip(shown, rng.sample(range(9), 2), strict=True):
        scene.place_in_cell(concept, cell)
    truth = rng.random() < 0.5
    asked = rng.choice(shown) if truth else pick(rng, *shown)
    answers = annotate(rng, "yes" if truth else "no", ["no" if truth else "yes"], 0.95)
    return _finish(scene, f"Is there a {asked.name} in the picture?", answers, "is there", "yes/no")


def _how_many(rng: Random, scene: Scene) -> Draft:
    counted = pick(rng)
    other = pick(rng, counted)
    n, distractors = rng.randint(1, 5), rng.randint(0, 2)
    cells = rng.sample(range(9), n + distractors)
    style = scene.style_for(counted)
    for cell in cells[:n]:
        scene.place_in_cell(counted, cell, style)
    for cell in cells[n:]:
        scene.place_in_cell(other, cell)
    answers = annotate(rng, str(n), [str(n + 1), str(max(1, n - 1))], 0.9)
    return _finish(scene, f"How many {plural(counted.name)} are there?", answers, "how many", "number")


def _colour(rng: Random, scene: Scene) -> Draft | None:
    for _ in range(20):
        concept = pick(rng)
        style = scene.style_for(concept)
        name = pack.colour(concept.hex, style)
        if name:
            scene.place(concept, 48, 48, rng.randint(40, 76), style)
            answers = annotate(rng, name, [c for c in ("red", "blue", "green", "brown") if c != name], 0.92)
            return _finish(scene, f"What color is the {concept.name}?", answers, "what color", "other")
    return None


def _what(rng: Random, scene: Scene) -> Draft:
    concept = pick(rng)
    scene.place(concept, rng.randint(40, 56), rng.randint(40, 56), rng.randint(40, 80))
    answers = annotate(rng, concept.name, concept.synonyms, 0.9)
    return _finish(scene, "What is in the picture?", answers, "what is", "other")
