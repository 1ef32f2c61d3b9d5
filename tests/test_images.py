"""Pictures as they come: kept byte for byte, checked cheaply, loaded as RGB and upright."""

import hashlib
import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench.data.images import (
    MAX_PIXELS,
    check_image,
    decode_image,
    image_path,
    load_image,
    media_type,
    store_image,
)
from peftbench.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (32, 20)) -> Image.Image:
    x = np.linspace(0, 255, size[0], dtype=np.uint8)
    pixels = np.stack([np.tile(x, (size[1], 1))] * 3, axis=-1)
    pixels[..., 1] = 255 - pixels[..., 1]
    return Image.fromarray(pixels).convert(mode)


def test_bytes_are_kept_and_named_by_their_hash(tmp_path: Path) -> None:
    data = encoded(gradient(), "JPEG", quality=70)
    sha = store_image(tmp_path, data)
    assert sha == hashlib.sha256(data).hexdigest()
    path = image_path(tmp_path, sha)
    assert path.read_bytes() == data
    assert path.suffix == "", "the name claims no format"
    before = path.stat().st_mtime_ns
    assert store_image(tmp_path, data) == sha
    assert path.stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [sha]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA"])
def test_png_modes_become_rgb(mode: str) -> None:
    source = gradient(mode)
    made = decode_image(encoded(source))
    assert made.mode == "RGB" and made.size == (32, 20)
    assert np.array_equal(np.asarray(made), np.asarray(source.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    made = np.asarray(decode_image(encoded(red, "JPEG", quality=95))).reshape(-1, 3).mean(axis=0)
    assert np.abs(made - (220, 30, 30)).max() < 12


def test_sixteen_bits_of_grey_are_scaled() -> None:
    values = np.array([[0, 256 * 100, 65535]], dtype=np.uint16)
    made = np.asarray(decode_image(encoded(Image.fromarray(values))))
    assert made[0, :, 0].tolist() == [0, 100, 255]
    assert (made[..., 0] == made[..., 1]).all()


def test_palette_with_transparency() -> None:
    image = gradient("P")
    made = decode_image(encoded(image, transparency=bytes([0] * 10 + [255] * 246)))
    assert made.mode == "RGB"
    assert np.array_equal(np.asarray(made), np.asarray(image.convert("RGB")))


def test_transparent_pixels_keep_their_colour() -> None:
    image = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    assert decode_image(encoded(image)).getpixel((0, 0)) == (10, 200, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((250, 0, 0), (0, 0, 10, 10))  # the corner that must end where the orientation says
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = decode_image(encoded(image, "JPEG", exif=exif, quality=95))
    assert made.size == ((40, 20) if orientation < 5 else (20, 40))
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[
        orientation
    ]
    at = (
        corner[0] * (made.width - 5) + 2 * (1 - corner[0]),
        corner[1] * (made.height - 5) + 2 * (1 - corner[1]),
    )
    pixel = made.getpixel(at)
    assert isinstance(pixel, tuple) and pixel[0] > 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_one_pixel_is_a_picture(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (9, 9, 9)), kind)
    check_image(data)
    assert decode_image(data).size == (1, 1)


def test_media_types() -> None:
    assert media_type(encoded(gradient(), "JPEG")) == "image/jpeg"
    assert media_type(encoded(gradient(), "PNG")) == "image/png"
    assert media_type(encoded(gradient(), "TIFF")) is None
    with pytest.raises(ValueError, match="no known picture format"):
        media_type(b"text")


BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404 not found</html>", "no known picture format"),
    "truncated jpeg": (encoded(gradient(size=(300, 200)), "JPEG")[:-900], "not a readable image"),
    "truncated png": (encoded(gradient(size=(300, 200)))[:-40], "not a readable image"),
    "header alone": (encoded(gradient())[:40], "not a readable image"),
    "header of a jpeg": (encoded(gradient(), "JPEG")[:30], "not a readable image"),
    "truncated webp": (
        encoded(gradient(size=(300, 200)), "WEBP", lossless=True)[:-50],
        "not a readable image",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pictures_are_found_when_prepared_and_when_loaded(case: str, tmp_path: Path) -> None:
    data, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as found:
        check_image(data)
    assert "\n" not in str(found.value) and "0x" not in str(found.value)
    sha = store_image(tmp_path, data)
    with pytest.raises(UserError, match=message) as error:
        load_image(tmp_path, sha)
    assert str(image_path(tmp_path, sha)) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_end_mark_alone_is_forgiven_where_the_decoder_forgives_it() -> None:
    data = encoded(gradient(), "JPEG")
    check_image(data + b"\0" * 100)  # padding after the end


def large_jpeg(side: int) -> bytes:
    """A one-colour baseline JPEG of any size, quickly: one small picture's scan, its blocks repeated."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 120).save(stream, "JPEG", quality=50)
    return stream.getvalue()


def png_header(side: int) -> bytes:
    """A PNG that claims a size and holds nothing: it must be refused by its header."""
    chunk = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    end = b"IEND"
    return (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
        + (0).to_bytes(4, "big")
        + end
        + zlib.crc32(end).to_bytes(4, "big")
    )


@pytest.mark.parametrize("side", [10_001, 14_000, 20_000, 100_000])
def test_a_png_beyond_the_limit_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ValueError, match=f"limit of {MAX_PIXELS:,}"):
        check_image(png_header(side))
    with pytest.raises(ValueError, match=f"limit of {MAX_PIXELS:,}"):
        decode_image(png_header(side))


def test_a_huge_jpeg_is_decoded_small(tmp_path: Path) -> None:
    """20,000 x 20,000 pixels are 1.2 GB as RGB; a process of its own, for its peak memory."""
    (tmp_path / "large.jpg").write_bytes(large_jpeg(20_000))
    code = (
        "import sys; from pathlib import Path; from peftbench.data.images import check_image, decode_image;"
        "data = Path(sys.argv[1]).read_bytes(); check_image(data); image = decode_image(data);"
        "status = Path('/proc/self/status').read_text();"
        "print(*image.size, image.mode, image.getpixel((5, 5))[0], int(status.split('VmHWM:')[1].split()[0]) // 1024)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.jpg")]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    width, height, mode, value, megabytes = out
    assert mode == "RGB" and int(width) == int(height) == 5000
    assert abs(int(value) - 120) <= 2
    assert int(megabytes) < 400


def test_a_progressive_jpeg_beyond_the_limit_is_refused() -> None:
    data = encoded(Image.new("L", (10_400, 10_000), 120), "JPEG", progressive=True, quality=30)
    with pytest.raises(ValueError, match="more than the limit"):
        check_image(data)


def test_pictures_up_to_the_limit_are_not_reduced() -> None:
    assert decode_image(encoded(Image.new("L", (9_000, 4_000), 7), "JPEG")).size == (9_000, 4_000)
