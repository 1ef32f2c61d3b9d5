"""IconQA-like questions to fill in (unseen): counts, empty boxes, sums of drawn digits; the answer is a number."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import Draft, pick, plural


def draft(rng: Random, split: str) -> Draft:
    """Draw one of three kinds of number puzzle."""
    scene = Scene(rng, split)
    question, n, kind = rng.choice((_count, _count, _ten_frame, _sum))(rng, scene)
    return Draft(question=question, answers=[str(n)], target=str(n), question_type=kind, scene=scene)


def _count(rng: Random, scene: Scene) -> tuple[str, int, str]:
    counted = pick(rng)
    other = pick(rng, counted)
    n = rng.randint(1, 7)
    distractors = rng.randint(0, min(2, 9 - n))
    cells = rng.sample(range(9), n + distractors)
    style = scene.style_for(counted)
    for cell in cells[:n]:
        scene.place_in_cell(counted, cell, style)
    for cell in cells[n:]:
        scene.place_in_cell(other, cell)
    return f"There are _ {plural(counted.name)}.", n, "count"


def _ten_frame(rng: Random, scene: Scene) -> tuple[str, int, str]:
    filled = rng.randint(1, 9)
    colour = rng.choice(((200, 40, 40), (40, 90, 200), (30, 140, 60), (120, 60, 160)))
    for i in range(10):
        row, column = divmod(i, 5)
        left, top = 6 + column * 17, 28 + row * 20
        scene.box(left, top, left + 15, top + 18, colour if i < filled else (252, 252, 252), (40, 40, 40))
    return "_ boxes are empty.", 10 - filled, "ten frame"


def _sum(rng: Random, scene: Scene) -> tuple[str, int, str]:
    a = rng.randint(1, 8)
    b = rng.randint(1, 9 - a)
    scene.write(str(a), 48, 40, x=26)
    scene.write(str(b), 48, 40, x=70)
    return "The sum is _.", a + b, "sum"
