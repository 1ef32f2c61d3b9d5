"""OCRVQA-like questions (seen): book covers with a real writer's name and a kind of book in drawn letters."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded.concepts import AUTHORS, GENRES
from peftbench.data.embedded.scene import SIZE, Scene
from peftbench.data.embedded.wording import Draft, pick


def draft(rng: Random, split: str) -> Draft:
    """Draw one cover: the writer above, a picture, the kind of book below."""
    scene = Scene(rng, split)
    author, genre = rng.choice(AUTHORS), rng.choice(GENRES)
    cover = pick(rng)
    scene.write(author, 16, 20)
    scene.place(cover, SIZE // 2, SIZE // 2, 36)
    scene.write(genre, SIZE - 14, 18, (120, 20, 20))
    chance = rng.random()
    if chance < 0.4:
        question, answer, kind = "Who wrote this book?", author, "author"
    elif chance < 0.7:
        question, answer, kind = "What is the genre of this book?", genre, "genre"
    else:
        truth = rng.random() < 0.5
        asked = genre if truth else rng.choice([g for g in GENRES if g != genre])
        question, answer, kind = f"Is this a book of {asked}?", "yes" if truth else "no", "yes-no"
    return Draft(question=question, answers=[answer], target=answer, question_type=kind, scene=scene)
