"""The image store: one file per picture, named by the sha256 of its bytes, shared by all data sets and splits.

Bytes are kept as they came (a JPEG stays a JPEG); the name says nothing of the format, the bytes do.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_PIXELS = 100_000_000
"""Larger pictures are decoded at reduced size where that needs no full decode (baseline JPEG), else refused."""
_DRAFT_SIDE = 4096
"""Reduced decoding keeps at least so many pixels along the longer side, where the file has them."""
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def image_path(image_store: Path, sha256: str) -> Path:
    """Return where a picture is kept; ``UserError`` for a name that is no sha256, which could lie anywhere."""
    if _SHA256.fullmatch(sha256) is None:
        raise UserError(
            f"{sha256[:80]!r} is no name of a picture: delete the data set's folder under results/data and run again"
        )
    return image_store / sha256[:2] / sha256


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
    """Return a picture as RGB; see ``decode_image``.

    Raises ``UserError`` when the file is missing, changed, no image, or too large.
    """
    data = read_image(image_store, sha256)
    try:
        return decode_image(data)
    except ValueError as error:
        raise UserError(f"{image_path(image_store, sha256)}: {error}") from None


def decode_image(data: bytes) -> Image.Image:
    """Decode a whole picture as RGB, turned upright by its EXIF orientation.

    Transparency is dropped, not blended, and 16-bit grey is scaled to 8 bits: as the models' own code does for the
    former, as one would expect for the latter. Raises ``ValueError`` with one line for what cannot be decoded.
    """
    from PIL import Image, ImageOps

    image = _open(data)
    try:
        if image.width * image.height > MAX_PIXELS:
            _reduce(image)
        # the limit above is ours and tighter where it counts; a draft is small although its file is not
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            return _grey_to_8_bits(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # a palette may hold transparency per colour
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({_one_line(error)})") from None


def check_image(data: bytes) -> None:
    """Check cheaply that bytes are a whole picture of a size that can be used: header, limit and end mark.

    Only a picture without its end mark is decoded, because decoders forgive some. Raises ``ValueError`` with one
    line.
    """
    image = _open(data)
    if image.width * image.height > MAX_PIXELS and not _reducible(image):
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS:,}: make it smaller"
        )
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    end = ends.get(str(image.format))
    if end is None or end not in data[-4096:]:
        decode_image(data)


def media_type(data: bytes) -> str | None:
    """Media type of a picture that browsers show, such as ``image/jpeg``; None for other formats.

    Raises ``ValueError`` where the bytes are no picture.
    """
    return _MEDIA_TYPES.get(str(_open(data).format))


def _open(data: bytes) -> Image.Image:
    """A lazily opened picture: only its header is read. Pillow's own size limit is replaced by ours."""
    import warnings

    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError("not a readable image (the file is empty)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(_Sized(data))
    except UnidentifiedImageError:
        raise ValueError("not a readable image (no known picture format)") from None
    except Image.DecompressionBombError:
        return _open_large(data)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"not a readable image ({_one_line(error)})") from None


class _Sized(io.BytesIO):
    """Bytes without a name: messages of Pillow then show no address of an object."""

    def __repr__(self) -> str:
        return "data"


def _open_large(data: bytes) -> Image.Image:
    """Beyond twice Pillow's limit, ``Image.open`` refuses: such a JPEG is opened directly, all else is refused."""
    from PIL import JpegImagePlugin

    if not data.startswith(b"\xff\xd8"):
        raise ValueError(f"more pixels than the limit of {MAX_PIXELS:,}: make the picture smaller") from None
    try:
        return JpegImagePlugin.JpegImageFile(_Sized(data))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"not a readable image ({_one_line(error)})") from None


def _reducible(image: Image.Image) -> bool:
    """Whether a reduced size can be decoded in little memory: progressive JPEGs keep all coefficients."""
    return image.format == "JPEG" and not image.info.get("progressive")


def _reduce(image: Image.Image) -> None:
    if not _reducible(image):
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS:,}: make it smaller"
        )
    scale = max(1.0, max(image.size) / _DRAFT_SIDE)
    image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"more pixels than the limit of {MAX_PIXELS:,}, even reduced: make the picture smaller"
        )


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8: the upper ones."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
