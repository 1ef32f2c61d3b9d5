"""Perceptual hashes of stored pictures, each computed once and kept by sha256."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.data.images import load_image
from peftbench.store import atomic_parquet

if TYPE_CHECKING:
    from PIL import Image

FLAT = 4.0
"""Standard deviation of grey (0..255) below which a picture has no hash: its bits would be noise."""
_SAVE_EVERY = 5000
"""Pictures hashed between two savings."""


def picture_hash(image: Image.Image) -> int | None:
    """pHash: 64 bits of the signs of the lowest frequencies of 32 x 32 pixels (package ``imagehash``).

    It outlives compression, scaling and slight changes of colour; not mirroring, turning or cropping. None for a
    picture without contrast.
    """
    import imagehash
    import numpy as np

    grey = image.convert("L")
    if float(np.asarray(grey).std()) < FLAT:
        return None
    bits = imagehash.phash(grey, hash_size=8, highfreq_factor=4).hash
    return int.from_bytes(np.packbits(bits.flatten()).tobytes(), "big")


def hash_pictures(
    image_store: Path,
    wanted: Iterable[str],
    cache: Path,
    step: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, int | None]:
    """Hashes of pictures by sha256, from the file ``cache`` where they are in it, else computed and added to it.

    One picture is in memory at a time; ``step`` is told how many of the missing ones are done. ``UserError`` for one
    that is missing or broken. A cache that cannot be read, or was made by another version of the packages, is made
    anew.
    """
    known = _read(cache)
    missing = [name for name in dict.fromkeys(wanted) if name not in known]
    for done, name in enumerate(missing, 1):
        known[name] = picture_hash(load_image(image_store, name))
        step(done, len(missing))
        if done % _SAVE_EVERY == 0:
            _write(cache, known)
    if missing:
        _write(cache, known)
    return known


def _made_by() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("imagehash", "pillow")]
    return ", ".join([f"phash 64, flat below {FLAT}", *versions])


def _read(cache: Path) -> dict[str, int | None]:
    from peftbench.arrow import pa, read_table

    try:
        table = read_table(cache)
        if (table.schema.metadata or {}).get(b"made_by") != _made_by().encode():
            return {}
        names: Sequence[bytes] = table["sha256"].to_pylist()
        return dict(zip((name.hex() for name in names), table["hash"].to_pylist(), strict=True))
    except (OSError, pa.ArrowInvalid, KeyError):
        return {}


def _write(cache: Path, known: dict[str, int | None]) -> None:
    from peftbench.arrow import pa, pq

    schema = pa.schema(
        [("sha256", pa.binary(32)), ("hash", pa.uint64())], metadata={b"made_by": _made_by().encode()}
    )
    columns: dict[str, Any] = {
        "sha256": [bytes.fromhex(name) for name in known],
        "hash": list(known.values()),
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    atomic_parquet(cache, lambda temporary: pq.write_table(pa.table(columns, schema=schema), temporary))
