"""IconQA-like questions with text choices (unseen): compare, locate, continue; the answer is the choice's text."""

from __future__ import annotations

from random import Random

from peftbench.data.embedded.scene import Scene
from peftbench.data.embedded.wording import Draft, pick, plural, shuffled_choices

CORNERS = ("top left", "top right", "bottom left", "bottom right")


def draft(rng: Random, split: str) -> Draft:
    """Draw one of four kinds of icon puzzle."""
    scene = Scene(rng, split)
    make = rng.choice((_compare, _where, _likelier, _next))
    question, right, wrong, kind = make(rng, scene)
    choices, index = shuffled_choices(rng, right, wrong)
    return Draft(
        question=question,
        answers=[right],
        target=right,
        question_type=kind,
        choices=choices,
        answer_index=index,
        scene=scene,
    )


def _two_groups(rng: Random, scene: Scene) -> tuple[str, str, int, int]:
    a = pick(rng)
    b = pick(rng, a)
    n_a, n_b = rng.choice(
        [(x, y) for x in range(1, 7) for y in range(1, 7) if abs(x - y) >= 2 and x + y <= 8]
    )
    cells = rng.sample(range(9), n_a + n_b)
    style_a, style_b = scene.style_for(a), scene.style_for(b)
    for cell in cells[:n_a]:
        scene.place_in_cell(a, cell, style_a)
    for cell in cells[n_a:]:
        scene.place_in_cell(b, cell, style_b)
    return a.name, b.name, n_a, n_b


def _compare(rng: Random, scene: Scene) -> tuple[str, str, list[str], str]:
    a, b, n_a, n_b = _two_groups(rng, scene)
    right, wrong = ("more", "fewer") if n_a > n_b else ("fewer", "more")
    return f"Are there more or fewer {plural(a)} than {plural(b)}?", right, [wrong], "compare"


def _likelier(rng: Random, scene: Scene) -> tuple[str, str, list[str], str]:
    a, b, n_a, n_b = _two_groups(rng, scene)
    return "Which is likelier to be picked?", a if n_a > n_b else b, [b if n_a > n_b else a], "likelier"


def _where(rng: Random, scene: Scene) -> tuple[str, str, list[str], str]:
    shown = [pick(rng)]
    for _ in range(3):
        shown.append(pick(rng, *shown))
    for concept, (x, y) in zip(shown, ((24, 24), (72, 24), (24, 72), (72, 72)), strict=True):
        scene.place(concept, x, y, rng.randint(34, 42))
    at = rng.randrange(4)
    return (
        f"Where is the {shown[at].name}?",
        CORNERS[at],
        [c for i, c in enumerate(CORNERS) if i != at],
        "where",
    )


def _next(rng: Random, scene: Scene) -> tuple[str, str, list[str], str]:
    a = pick(rng)
    b = pick(rng, a)
    order = rng.choice(((a, b, a, b, a), (a, a, b, a, a), (a, b, b, a, b)))
    following = {(a, b, a, b, a): b, (a, a, b, a, a): b, (a, b, b, a, b): b}[order]
    style_a, style_b = scene.style_for(a), scene.style_for(b)
    for i, concept in enumerate(order):
        scene.place(concept, 16 + 32 * (i % 3), 32 + 32 * (i // 3), 28, style_a if concept is a else style_b)
    return "What comes next in the pattern?", following.name, [(a if following is b else b).name], "next"
