"""OKVQA-like questions (seen): what kind of thing it is and where it belongs, which the picture does not say."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded.concepts import PLACES
from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import Draft, annotate, classified, majority


def draft(rng: Random, split: str) -> Draft:
    """Draw one question about one thing; alternative answers are WordNet hypernyms or the second place."""
    scene = Scene(rng, split)
    concept = classified(rng)
    scene.place(concept, rng.randint(40, 56), rng.randint(40, 56), rng.randint(40, 80))
    if concept.kind in PLACES and rng.random() < 0.4:
        usual, second = PLACES[concept.kind]
        question, kind = "Where is this usually found?", "place"
        answers = annotate(rng, usual, [second], 0.75)
    else:
        question, kind = "What kind of thing is this?", "kind"
        answers = annotate(rng, concept.kind, [h for h in concept.hypernyms[:2] if h != concept.kind], 0.8)
    return Draft(
        question=question,
        answers=answers,
        target=majority(answers),
        question_type=kind,
        answer_type="other",
        scene=scene,
    )
