"""Render the words of ``concepts.WORDS`` into ``pack/sprites/words.zip``: alpha masks, one folder per typeface.

Run by hand (``python -m peftbench.data.embedded.render_words``) after a change of the word list. The pixels are
committed, so that no machine's font renderer can change the data. The typefaces are DejaVu, which ships inside
matplotlib; each stands for a "drawing style" of text, and the last is kept for the test split.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from peftbench.data.embedded.concepts import WORDS

TYPEFACES = {
    "sans": "DejaVuSans.ttf",
    "sans_bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "mono_bold": "DejaVuSansMono-Bold.ttf",
    "serif_bold": "DejaVuSerif-Bold.ttf",
}


def render(word: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the word in capitals as a tight 8-bit mask, 24 px high with its margins cut off."""
    left, top, right, bottom = font.getbbox(word.upper())
    mask = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(mask).text((-left, -top), word.upper(), fill=255, font=font)
    return mask


def main() -> None:
    """Write the archive; entries carry a fixed time, so that equal pixels give equal bytes."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    target = Path(__file__).parent / "pack" / "sprites" / "words.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for face, file in TYPEFACES.items():
            font = ImageFont.truetype(str(fonts / file), 32)
            for word in WORDS:
                buffer = io.BytesIO()
                render(word, font).save(buffer, "PNG", optimize=True)
                archive.writestr(zipfile.ZipInfo(f"{face}/{word}.png"), buffer.getvalue())
    print(f"wrote {target} ({target.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
