"""Open the embedded artwork: concepts with their names, and their drawings by style."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from PIL import Image

from peftbench.data.embedded.concepts import SELECTION

if TYPE_CHECKING:
    import numpy as np

PACK = Path(__file__).parent / "pack"
# The artwork decides the data as much as the code does, so its bytes enter the fingerprint.
FINGERPRINT_FILES = (
    "pack/concepts.jsonl",
    "pack/sprites/emojione.zip",
    "pack/sprites/fluent.zip",
    "pack/sprites/fxemoji.zip",
    "pack/sprites/noto.zip",
    "pack/sprites/noto_v1.zip",
    "pack/sprites/twemoji.zip",
    "pack/sprites/words.zip",
)

# Train and test never share an artist or a typeface: what is learned about a thing must carry over.
STYLES = {
    "train": ("noto", "noto_v1", "fxemoji", "fluent", "emojione"),
    "test": ("twemoji",),
}
TYPEFACES = {"train": ("sans", "sans_bold", "serif", "mono_bold"), "test": ("serif_bold",)}

COLOUR_SHARE = 0.55  # a thing "is red" when at least this share of its opaque pixels is red


class Concept(msgspec.Struct, frozen=True):
    """A thing that can be drawn: everyday name, attested other names, kind, WordNet hypernyms (near to far)."""

    hex: str
    name: str
    synonyms: tuple[str, ...]
    kind: str
    hypernyms: tuple[str, ...]
    gloss: str
    styles: tuple[str, ...]


@cache
def concepts() -> tuple[Concept, ...]:
    """Return the chosen concepts in the pack's order."""
    wanted = {
        label: (name or label, kind) for kind, group in SELECTION.items() for label, name in group.items()
    }
    found = []
    for line in (PACK / "concepts.jsonl").read_bytes().splitlines():
        row = msgspec.json.decode(line)
        if row["label"] not in wanted:
            continue
        name, kind = wanted[row["label"]]
        counted = Counter(n for names in row["names"].values() for n in names)
        synonyms = [
            n for n, _ in counted.most_common() if n != name and n.isascii() and n.replace(" ", "").isalpha()
        ]
        found.append(
            Concept(
                hex=row["hex"],
                name=name,
                synonyms=tuple(s for s in synonyms if len(s.split()) <= 2)[:3],
                kind=kind,
                hypernyms=tuple(row["wordnet"]["hyper"][:4]),
                gloss=row["wordnet"]["gloss"].split(";")[0],
                styles=tuple(row["styles"]),
            )
        )
    missing = wanted.keys() - {
        r["label"] for r in map(msgspec.json.decode, (PACK / "concepts.jsonl").read_bytes().splitlines())
    }
    if missing:
        raise ValueError(f"concepts.py names what the pack does not hold: {sorted(missing)}")
    return tuple(found)


@cache
def kinds() -> tuple[str, ...]:
    """Return the kinds that have at least three concepts, in a fixed order."""
    counted = Counter(c.kind for c in concepts() if c.kind)
    return tuple(sorted(k for k, n in counted.items() if n >= 3))


@cache
def of_kind(kind: str) -> tuple[Concept, ...]:
    """Return the concepts of one kind."""
    return tuple(c for c in concepts() if c.kind == kind)


@cache
def _archive(name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(PACK / "sprites" / f"{name}.zip")


@cache
def sprite(hex_code: str, style: str) -> Image.Image:
    """Return one drawing as RGBA, 72 x 72 pixels, cut to what is drawn."""
    image = Image.open(io.BytesIO(_archive(style).read(f"{hex_code}.png"))).convert("RGBA")
    box = image.getchannel("A").getbbox()
    return image.crop(box) if box else image


@cache
def word(text: str, typeface: str) -> Image.Image:
    """Return the mask (8 bit) of one word of ``concepts.WORDS``, about 24 pixels high."""
    return Image.open(io.BytesIO(_archive("words").read(f"{typeface}/{text}.png"))).convert("L")


def _colour_names(hsv: np.ndarray) -> Counter[str]:
    """Count colour words over pixels given as HSV in 0..255 (integers, so that every machine agrees)."""
    import numpy as np

    hue, saturation, value = (hsv[:, i].astype(int) for i in range(3))
    names = np.full(len(hsv), "pink", dtype="U8")
    # from the outermost hue inwards: a later line overrules an earlier one
    for below, word in ((215, "purple"), (175, "blue"), (115, "green"), (46, "yellow"), (28, "orange")):
        names[hue < below] = word
    names[(hue >= 10) & (hue < 28) & (value < 190)] = "brown"
    reddish = (hue < 10) | (hue >= 245)
    names[reddish & (saturation > 110)] = "red"
    names[reddish & (saturation <= 110)] = "pink"
    names[(saturation < 40) & (value > 215)] = "white"
    names[(saturation < 40) & (value <= 215)] = "gray"
    names[value < 60] = "black"
    words, counts = np.unique(names, return_counts=True)
    return Counter(dict(zip(words.tolist(), counts.tolist(), strict=True)))


@cache
def colour(hex_code: str, style: str) -> str:
    """Return the colour that most of a drawing has, measured from its pixels; "" where none dominates."""
    import numpy as np

    image = sprite(hex_code, style)
    opaque = np.asarray(image.getchannel("A")) > 200
    counted = _colour_names(np.asarray(image.convert("RGB").convert("HSV"))[opaque])
    name, n = counted.most_common(1)[0]
    return name if n >= COLOUR_SHARE * counted.total() else ""
