"""Compose training scenes for the tiny tower, with a label for every patch.

Quicker and more varied than the data sets' own drawing: sprites are prepared once in several colourings, and a
chunk of scenes is a function of its number alone, so any number of processes gives the same scenes.
Only the training artists are drawn from for training; ``split="test"`` draws the held-out artist, for the probe.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import TYPE_CHECKING

from peftbench.data.embedded import pack
from peftbench.data.embedded.concepts import WORDS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE = 96
PATCH = 16
GRID = SIZE // PATCH
COLOURINGS = 4  # versions of each drawing; the first is the artist's own
BACKGROUNDS = 256


def n_classes() -> int:
    """Return the number of patch classes: background, every concept, every word."""
    return 1 + len(pack.concepts()) + len(WORDS)


@cache
def _things(split: str) -> list[list[list[Image.Image]]]:
    """Return, by concept and style, the drawing's colourings as RGBA images."""
    from PIL import Image, ImageEnhance

    rng = Random(3)
    found: list[list[list[Image.Image]]] = []
    for concept in pack.concepts():
        styles = []
        for style in pack.STYLES[split]:
            if style not in concept.styles:
                continue
            art = pack.sprite(concept.hex, style)
            versions = [art]
            for _ in range(COLOURINGS - 1 if split == "train" else 0):
                rgb = ImageEnhance.Color(art.convert("RGB")).enhance(rng.uniform(0.3, 1.5))
                gains = [rng.uniform(0.75, 1.2) for _ in range(3)]
                bands = [
                    Image.frombytes("L", band.size, bytes(min(255, int(v * gain)) for v in band.tobytes()))
                    for band, gain in zip(rgb.split(), gains, strict=True)
                ]
                rgb = ImageEnhance.Contrast(Image.merge("RGB", bands)).enhance(rng.uniform(0.7, 1.25))
                rgb.putalpha(art.getchannel("A"))
                versions.append(rgb)
            styles.append(versions)
        found.append(styles)
    return found


@cache
def _backgrounds() -> list[Image.Image]:
    """Return plain, graded and speckled backgrounds."""
    from peftbench.data.embedded.scene import _background

    rng = Random(4)
    return [_background(rng).convert("RGB") for _ in range(BACKGROUNDS)]


class _Canvas:
    """One scene being composed: the picture, the label per patch and the patches that hold a thing's centre."""

    def __init__(self, rng: Random, split: str) -> None:
        import numpy as np

        self.rng, self.split = rng, split
        self.image = rng.choice(_backgrounds()).copy()
        if rng.random() < 0.5:
            self.image = self.image.rotate(rng.choice((90, 180, 270)))
        self.label = np.zeros(GRID * GRID, dtype=np.int16)
        self.centre = np.zeros(GRID * GRID, dtype=np.uint8)

    def paste(self, art: Image.Image, x: int, y: int, label: int) -> None:
        """Draw RGBA art centred on (x, y) and label the patches that it covers by more than a fifth."""
        import numpy as np
        from PIL import Image

        corner = (x - art.width // 2, y - art.height // 2)
        self.image.paste(art, corner, art)
        mask = Image.new("L", (SIZE, SIZE), 0)
        mask.paste(art.getchannel("A"), corner)
        share = np.asarray(mask.reduce(PATCH)).reshape(-1)
        self.label[share > 51] = label
        self.centre[min(max(y, 0), SIZE - 1) // PATCH * GRID + min(max(x, 0), SIZE - 1) // PATCH] = 1

    def thing(self, concept: int, x: int, y: int, side: int, styles: list[Image.Image] | None = None) -> None:
        """Draw one concept with its longer side ``side`` pixels, mirrored and tilted at random."""
        from PIL import Image

        rng = self.rng
        art = rng.choice(styles or rng.choice(_things(self.split)[concept]))
        longer = max(art.size)
        art = art.resize(
            (max(1, art.width * side // longer), max(1, art.height * side // longer)),
            Image.Resampling.BILINEAR,
        )
        if rng.random() < 0.5:
            art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.split == "train" and rng.random() < 0.4:
            art = art.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR, expand=True)
        self.paste(art, x, y, 1 + concept)

    def word(self, index: int, x: int | None, y: int, height: int) -> None:
        """Write one word in a dark colour, centred at x (None: anywhere it fits)."""
        from PIL import Image

        rng = self.rng
        mask = pack.word(WORDS[index], rng.choice(pack.TYPEFACES[self.split]))
        width = min(mask.width * height // mask.height, SIZE - 6)
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
        ink = Image.new("RGBA", mask.size, (rng.randint(0, 130), rng.randint(0, 40), rng.randint(0, 40), 255))
        ink.putalpha(mask)
        if x is None:
            x = rng.randint(width // 2, SIZE - width // 2)
        self.paste(ink, x, y, 1 + len(pack.concepts()) + index)


def _compose(rng: Random, split: str) -> _Canvas:
    canvas = _Canvas(rng, split)
    n = len(pack.concepts())
    kind = rng.random()

    def near(value: int, by: int = 3) -> int:
        return value + rng.randint(-by, by)

    if kind < 0.35:
        canvas.thing(rng.randrange(n), near(48, 12), near(48, 12), rng.randint(36, 86))
    elif kind < 0.55:
        if rng.random() < 0.5:
            spots: tuple[tuple[int, int], ...] = rng.choice((((25, 48), (71, 48)), ((48, 25), (48, 71))))
        else:
            spots = tuple(s for s in ((24, 24), (72, 24), (24, 72), (72, 72)) if rng.random() < 0.8) or (
                (24, 24),
            )
        for x, y in spots:
            canvas.thing(rng.randrange(n), near(x), near(y), rng.randint(33, 46))
    elif kind < 0.8:
        first, second = rng.randrange(n), rng.randrange(n)
        drawn = {c: rng.choice(_things(split)[c]) for c in (first, second)}
        for cell in rng.sample(range(9), rng.randint(1, 9)):
            concept = first if rng.random() < 0.6 else second
            canvas.thing(
                concept,
                near(16 + 32 * (cell % 3), 2),
                near(16 + 32 * (cell // 3), 2),
                rng.randint(24, 31),
                drawn[concept],
            )
    else:
        if rng.random() < 0.15:
            digits = len(WORDS) - 10
            for x in (26, 70):
                canvas.word(digits + rng.randrange(10), near(x), near(48), rng.randint(34, 44))
        else:
            if rng.random() < 0.8:
                canvas.word(rng.randrange(len(WORDS)), None, near(16, 5), rng.randint(15, 24))
            if rng.random() < 0.8:
                canvas.word(rng.randrange(len(WORDS)), None, near(80, 5), rng.randint(15, 24))
            if rng.random() < 0.4:
                canvas.word(rng.randrange(len(WORDS)), None, near(48, 4), rng.randint(15, 24))
            elif rng.random() < 0.8:
                canvas.thing(rng.randrange(n), 48, near(48), rng.randint(30, 40))
    return canvas


def compose_chunk(task: tuple[int, int, int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compose the scenes of chunk ``(seed, number, size, split)``.

    Returns pictures (n, 96, 96, 3) uint8, labels (n, 36) int16 (0 is background), centres (n, 36) uint8.
    """
    import numpy as np

    seed, number, size, split = task
    rng = Random(seed * 1_000_003 + number)
    done = [_compose(rng, split) for _ in range(size)]
    return (
        np.stack([np.asarray(c.image) for c in done]),
        np.stack([c.label for c in done]),
        np.stack([c.centre for c in done]),
    )
