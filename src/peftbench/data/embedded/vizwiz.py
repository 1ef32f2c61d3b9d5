"""VizWiz-like questions (unseen): hurried pictures, some too bad to tell; ten people, some say "unanswerable"."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import LABELS
from peftbench.data.embedded.scene import SIZE, Scene
from peftbench.data.embedded.wording import ANNOTATORS, Draft, majority, pick

UNANSWERABLE = "unanswerable"
# How likely a person gives up, by how spoilt the picture is (0 sharp ... 3 beyond recognition).
GIVES_UP = (0.03, 0.15, 0.55, 0.95)


def draft(rng: Random, split: str) -> Draft:
    """Draw one thing or one labelled tin, spoil the picture, and ask ten people."""
    scene = Scene(rng, split)
    severity = rng.choice((0, 0, 0, 1, 2, 3))
    chance = rng.random()
    others: list[str] = []
    if chance < 0.25:
        right = rng.choice(LABELS)
        shade = (rng.randint(120, 220), rng.randint(120, 220), rng.randint(120, 220))
        scene.box(14, 10, SIZE - 14, SIZE - 8, shade, (60, 60, 60))
        scene.box(14, 34, SIZE - 14, 66, (250, 250, 245))
        scene.write(right, 50, 18)
        question = "What does the label say?"
    else:
        concept = pick(rng)
        style = scene.place(concept, rng.randint(38, 58), rng.randint(38, 58), rng.randint(50, 80))
        colour = pack.colour(concept.hex, style)
        if colour and chance < 0.45:
            question, right = "What color is this?", colour
        else:
            question, right, others = "What is this?", concept.name, list(concept.synonyms)
    scene.degrade(severity)
    answers = []
    for _ in range(ANNOTATORS):
        if rng.random() < GIVES_UP[severity]:
            answers.append(UNANSWERABLE)
        else:
            answers.append(rng.choice(others) if others and rng.random() < 0.15 else right)
    target = majority(answers)
    return Draft(
        question=question,
        answers=answers,
        target=target,
        question_type=question,
        answer_type=UNANSWERABLE if target == UNANSWERABLE else "other",
        scene=scene,
        facts={"severity": severity},
    )
