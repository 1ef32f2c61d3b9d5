"""Data sets of kind ``embedded``: drawn from the artwork that ships with the package, no download.

``source: {kind: embedded, generator: <module of peftbench.data.embedded>, seed: 7}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from peftbench.data.draw import draw, load_generator
from peftbench.data.example import Example
from peftbench.data.images import store_image
from peftbench.errors import UserError
from peftbench.spec import PrepareSpec


class EmbeddedSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``source:`` block of an embedded data set."""

    kind: Literal["embedded"]
    generator: str
    seed: int = 7


def parse(source: dict[str, Any]) -> EmbeddedSource:
    """Return the typed block; ``UserError`` on an unknown or mistyped key."""
    try:
        return msgspec.convert(source, EmbeddedSource)
    except msgspec.ValidationError as error:
        raise UserError(f"data source of kind 'embedded': {error}") from None


def splits(
    spec: PrepareSpec, image_store: Path, files: dict[str, Path]
) -> Iterator[tuple[str, Iterator[Example]]]:
    """Yield each split with its rows; pictures are stored as the rows are drawn. ``files``: nothing is retrieved."""
    source = parse(spec.source)
    load_generator(source.generator)

    def rows(split: str, n: int) -> Iterator[Example]:
        for index in range(n):
            example, png = draw(source.generator, split, index, source.seed)
            if png:
                store_image(image_store, png)
            yield example

    for split, n in spec.splits.items():
        yield split, rows(split, n)
