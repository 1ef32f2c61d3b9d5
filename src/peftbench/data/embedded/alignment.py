"""Alignment captions (the role of LLaVA's CC-595K): one thing or one word, named. Only the base model sees them."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import WORDS
from peftbench.data.embedded.scene import SIZE, Scene
from peftbench.data.embedded.wording import Draft, pick, with_article

REQUESTS = ("Name it.", "What does the image show?", "Describe the image in a word.")


def draft(rng: Random, split: str) -> Draft:
    """Draw one captioned picture."""
    scene = Scene(rng, split)
    if rng.random() < 0.15:
        text = rng.choice(WORDS)
        scene.write(text, rng.randint(20, SIZE - 20), rng.randint(16, 24))
        caption = f"the word {text}"
    else:
        concept = pick(rng)
        style = scene.place(concept, rng.randint(36, 60), rng.randint(36, 60), rng.randint(36, 84))
        colour = pack.colour(concept.hex, style)
        caption = with_article(concept.name, colour if rng.random() < 0.5 else "")
    return Draft(
        question=rng.choice(REQUESTS), answers=[caption], target=caption, question_type="name", scene=scene
    )
