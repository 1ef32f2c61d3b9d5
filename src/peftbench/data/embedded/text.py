"""Text without pictures, for the base model alone: glosses, and short phrases to repeat.

A real base model can read and write any word before it sees a picture. These lines give the tiny one the same:
every token of its vocabulary occurs, and copying from the prompt is learned.
"""

from __future__ import annotations

from random import Random

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import PLACES, WORDS
from peftbench.data.embedded.wording import NUMBERS, Draft, plural

GENERAL = (
    "than more fewer same left right top bottom above below next to on under in front of behind between "
    "beside middle corner row column empty full boxes box count sum plus equals blank fill image picture "
    "photo question answer choices choose option letter word phrase label color shown showing there is are a "
    "an the and or of with Where Which What Are does it its belong missing next one usually likely likelier "
    "unanswerable insufficient information provided single book writer genre group pair many several two "
    "three four which what where who how pattern comes pick picked usually found kind thing"
).split()


def vocabulary() -> list[str]:
    """Return all words that the embedded data sets may use."""
    words: list[str] = [*GENERAL, *WORDS, *NUMBERS]
    for concept in pack.concepts():
        words += [concept.name, plural(concept.name), *concept.synonyms]
    words += list(pack.kinds()) + [p for places in PLACES.values() for p in places]
    words += ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"]
    return sorted(set(words))


def draft(rng: Random, split: str) -> Draft:
    """Return one line to write: half the time a gloss, else a phrase to repeat or the n-th of several choices."""
    if rng.random() < 0.25:
        concept = rng.choice(pack.concepts())
        question, answer = f"What is a {concept.name}?", f"{concept.gloss}"[:90]
    else:
        words = rng.sample(vocabulary(), rng.randint(1, 4))
        if rng.random() < 0.5:
            answer = " ".join(words)
            question = f"Repeat: {answer}"
        else:
            index = rng.randrange(len(words))
            question = f"{'ABCD'[index]}? " + " ".join(f"{'ABCD'[i]}. {w}" for i, w in enumerate(words))
            answer = words[index]
    return Draft(question=question, answers=[answer], target=answer, question_type="text")
