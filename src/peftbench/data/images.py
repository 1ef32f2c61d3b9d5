"""The image store: one file per picture, named by the sha256 of its bytes, shared by all data sets and splits."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


def image_path(image_store: Path, sha256: str) -> Path:
    """Return where a picture is kept."""
    return image_store / sha256[:2] / f"{sha256}.png"


def store_image(image_store: Path, data: bytes) -> str:
    """Keep a picture's bytes once; return their sha256 (hex)."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = image_path(image_store, sha256)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return sha256


def read_image(image_store: Path, sha256: str) -> bytes:
    """Return a picture's bytes after checking them against its name.

    Raises ``UserError`` when the file is missing or was changed.
    """
    path = image_path(image_store, sha256)
    try:
        data = path.read_bytes()
    except OSError:
        raise UserError(
            f"{path}: image is missing: delete the data set's folder under results/data and run again"
        ) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path}: image is corrupt (its bytes are not those of its name): delete it and the data set's folder "
            "under results/data, and run again"
        )
    return data


def load_image(image_store: Path, sha256: str) -> Image.Image:
    """Return a picture as RGB.

    Raises ``UserError`` when the file is missing, changed, or no image.
    """
    from PIL import Image

    data = read_image(image_store, sha256)
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{image_path(image_store, sha256)}: not a readable image ({error})") from None
