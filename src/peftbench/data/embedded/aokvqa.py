"""A-OKVQA-like multiple choice (part of the base model's diet, as of LLaVA-1.5's): which name fits, by letter."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import Draft, pick, shuffled_choices


def draft(rng: Random, split: str) -> Draft:
    """Draw one picture and two to four names, one of them right."""
    scene = Scene(rng, split)
    concept = pick(rng)
    style = scene.place(concept, 48, 48, rng.randint(44, 80))
    n_wrong = rng.randint(1, 3)
    colour = pack.colour(concept.hex, style)
    if colour and rng.random() < 0.25:
        question, right = "Which color is it?", colour
        wrong = rng.sample(
            [
                c
                for c in ("red", "orange", "yellow", "green", "blue", "brown", "black", "white")
                if c != colour
            ],
            n_wrong,
        )
    else:
        question, right = "What is this?", concept.name
        wrong = []
        while len(wrong) < n_wrong:
            name = pick(rng, concept).name
            if name not in wrong:
                wrong.append(name)
    choices, index = shuffled_choices(rng, right, wrong)
    letter = "ABCD"[index]
    return Draft(
        question=question,
        answers=[letter],
        target=letter,
        question_type="multiple choice",
        choices=choices,
        answer_index=index,
        scene=scene,
    )
