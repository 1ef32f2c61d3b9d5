"""Pictures of the store as they stand on a page."""

import base64
import io
from pathlib import Path
from typing import Any

from peftbench.data.images import load_image, media_type, read_image
from peftbench.errors import UserError

SIDE = 288
"""Longest side of a picture on the page, in pixels."""
SMALL = 12_000
"""Stored pictures of up to so many bytes stand on the page as they are."""


def picture_address(image_store: Path, sha256: str) -> tuple[str, str]:
    """A picture as a ``data:`` address, or why it is none."""
    if not sha256:
        return "", "no picture"
    try:
        stored = read_image(image_store, sha256)
        picture: Any = load_image(image_store, sha256)  # a picture, not just bytes
        kind = media_type(stored)
        if kind and len(stored) <= SMALL:
            return _address(stored, kind), ""
    except UserError:
        return "", "picture missing or damaged"
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=82, method=6)
    return _address(stream.getvalue(), "image/webp"), ""


def _address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
