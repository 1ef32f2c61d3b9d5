"""ScienceQA-like multiple choice (unseen): classify, place or tell apart what is drawn; the answer is a letter."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import PLACES
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import Draft, classified, pick, shuffled_choices


def draft(rng: Random, split: str) -> Draft:
    """Draw one question with three choices (a third of them are right by luck)."""
    scene = Scene(rng, split)
    chance = rng.random()
    if chance < 0.4:
        concept = classified(rng)
        scene.place(concept, 48, 48, rng.randint(44, 80))
        question, right, kind = "Which group does it belong to?", concept.kind, "group"
        wrong = rng.sample([k for k in pack.kinds() if k != concept.kind], 2)
    elif chance < 0.65:
        concept = pick(rng, kind=rng.choice(tuple(PLACES)))
        scene.place(concept, 48, 48, rng.randint(44, 80))
        places = PLACES[concept.kind]
        question, right, kind = "Where does it belong?", places[0], "place"
        wrong = rng.sample(sorted({p[0] for p in PLACES.values()} - set(places)), 2)
    else:
        shown = [classified(rng)]
        shown.append(classified(rng, *shown))
        absent = classified(rng, *shown)
        for concept, x in zip(shown, (25, 71), strict=True):
            scene.place(concept, x, 48, rng.randint(36, 44))
        question, right, kind = "Which one is missing?", absent.name, "missing"
        wrong = [c.name for c in shown]
    choices, index = shuffled_choices(rng, right, wrong)
    letter = "ABC"[index]
    return Draft(
        question=question,
        answers=[letter],
        target=letter,
        question_type=kind,
        choices=choices,
        answer_index=index,
        scene=scene,
    )
