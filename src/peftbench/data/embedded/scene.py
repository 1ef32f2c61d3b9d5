"""Draw one picture of 96 x 96 pixels from sprites and words, with integer arithmetic only.

A picture is a function of its random generator and the split (which decides artists and typefaces), so that it
is the same on every machine, in any order of drawing.
"""

from __future__ import annotations

import io
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from peftbench.data.embedded import pack
from peftbench.data.embedded.pack import Concept

SIZE = 96
CELL = SIZE // 3  # many things are laid out on a grid of three by three


def _pastel(rng: Random) -> tuple[int, int, int]:
    return rng.randint(170, 255), rng.randint(170, 255), rng.randint(170, 255)


def _background(rng: Random) -> Image.Image:
    """Plain, a gradient between two colours, or speckled."""
    kind = rng.random()
    if kind < 0.4:
        return Image.new("RGB", (SIZE, SIZE), _pastel(rng))
    if kind < 0.75:
        a, b = _pastel(rng), _pastel(rng)
        strip = Image.new("RGB", (1, SIZE))
        strip.putdata([tuple((a[c] * (SIZE - y) + b[c] * y) // SIZE for c in range(3)) for y in range(SIZE)])
        return strip.resize((SIZE, SIZE), Image.Resampling.NEAREST).rotate(rng.choice((0, 90)))
    base = Image.new("RGB", (SIZE, SIZE), _pastel(rng))
    speckle = Image.frombytes("L", (SIZE, SIZE), rng.randbytes(SIZE * SIZE))
    return Image.composite(base, Image.new("RGB", (SIZE, SIZE), _pastel(rng)), speckle)


class Scene:
    """A picture being drawn; ``things`` lists what it shows, for the reference answers."""

    def __init__(self, rng: Random, split: str) -> None:
        self.rng = rng
        self.split = split
        self.image = _background(rng)
        self.things: list[tuple[Concept, str]] = []

    def style_for(self, concept: Concept) -> str:
        """Return one of the split's artists that drew this concept."""
        return self.rng.choice([s for s in pack.STYLES[self.split] if s in concept.styles])

    def place(self, concept: Concept, x: int, y: int, size: int, style: str | None = None) -> str:
        """Draw a concept centred on (x, y) pixels, its longer side ``size``; return the artist's name."""
        style = style or self.style_for(concept)
        art = pack.sprite(concept.hex, style)
        scale = max(art.size)
        art = art.resize(
            (max(1, art.width * size // scale), max(1, art.height * size // scale)), Image.Resampling.BILINEAR
        )
        if self.rng.random() < 0.5:
            art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        self.image.paste(art, (x - art.width // 2, y - art.height // 2), art)
        self.things.append((concept, style))
        return style

    def place_in_cell(self, concept: Concept, cell: int, style: str | None = None) -> str:
        """Draw a concept in cell 0..8 of the grid (rows from the top), filling most of it."""
        row, column = divmod(cell, 3)
        jitter = self.rng.randint(-1, 1)
        return self.place(
            concept,
            column * CELL + CELL // 2 + jitter,
            row * CELL + CELL // 2,
            self.rng.randint(25, 30),
            style,
        )

    def write(
        self,
        text: str,
        y: int,
        height: int = 20,
        colour: tuple[int, int, int] = (20, 20, 20),
        x: int = SIZE // 2,
    ) -> None:
        """Write a word of the pack centred on (x, y), ``height`` pixels high where the picture is wide enough."""
        mask = pack.word(text, self.rng.choice(pack.TYPEFACES[self.split]))
        width = min(mask.width * height // mask.height, SIZE - 6)
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
        self.image.paste(colour, (x - width // 2, y - height // 2), mask)

    def box(
        self,
        left: int,
        top: int,
        right: int,
        bottom: int,
        fill: tuple[int, int, int] | None,
        outline: tuple[int, int, int] | None = None,
    ) -> None:
        """Draw a rectangle (pixels, inclusive)."""
        ImageDraw.Draw(self.image).rectangle((left, top, right, bottom), fill=fill, outline=outline)

    def degrade(self, severity: int) -> None:
        """Spoil the picture as a hurried photograph is spoilt; severity 0 (not at all) to 3 (beyond recognition)."""
        if severity == 0:
            return
        way = self.rng.choice(("blur", "dark", "cut", "cover"))
        if way == "blur":
            self.image = self.image.filter(ImageFilter.BoxBlur((2, 5, 11)[severity - 1]))
        elif way == "dark":
            keep = (55, 20, 6)[severity - 1]
            self.image = self.image.point(lambda v: v * keep // 100)
        elif way == "cut":
            shift = (24, 52, 80)[severity - 1]
            dx, dy = self.rng.choice(((shift, 0), (-shift, 0), (0, shift), (0, -shift)))
            moved = Image.new("RGB", (SIZE, SIZE), self.image.getpixel((0, 0)))
            moved.paste(self.image, (dx, dy))
            self.image = moved
        else:
            side = (30, 62, 92)[severity - 1]
            left = self.rng.randint(max(0, 48 - side), min(48, SIZE - side))
            top = self.rng.randint(max(0, 48 - side), min(48, SIZE - side))
            shade = self.rng.randint(60, 140)
            self.box(left, top, left + side, top + side, (shade, shade * 4 // 5, shade * 3 // 4))

    def png(self) -> bytes:
        """Return the finished picture as PNG."""
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
