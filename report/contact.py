"""A sheet of small images above their names, drawn in milliseconds: what a run shows of its first
batches.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from base.files import SOFTWARE, whole_file
from base.text import printable

COLUMNS, ROWS = 8, 4
# Images on a sheet.
COUNT = COLUMNS * ROWS
# Pixels: the least and the largest side that an image is shown at, a line of text, a letter.
MIN_SIDE, MAX_SIDE, LINE, LETTER = 112, 160, 13, 6.2
MARGIN = 6


def signed() -> PngInfo:
    """Return what makes a picture known as this program's."""
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    return info


def draw(images: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Draw up to 32 images as PNG, each above its title of one or two lines.

    images: (N, S, S, 3) uint8. Raises OSError.
    """
    images = images[:COUNT]
    side = images.shape[1]
    # Small ones are enlarged by whole factors: each pixel stays a square.
    cell = MAX_SIDE if side > MAX_SIDE else side * min(-(-MIN_SIDE // side), MAX_SIDE // side)
    kernel = Image.Resampling.NEAREST if cell >= side else Image.Resampling.BILINEAR
    lines = max((title.count("\n") + 1 for title in titles[:COUNT]), default=1)
    rows = -(-len(images) // COLUMNS)
    width = COLUMNS * (cell + MARGIN) + MARGIN
    height = rows * (cell + lines * LINE + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)

    for place, (pixels, title) in enumerate(zip(images, titles, strict=False)):
        row, column = divmod(place, COLUMNS)
        left = MARGIN + column * (cell + MARGIN)
        top = MARGIN + row * (cell + lines * LINE + MARGIN)
        shown = Image.fromarray(pixels).resize((cell, cell), kernel)
        sheet.paste(shown, (left, top))
        for number, line in enumerate(title.split("\n")):
            text, most = printable(line), int(cell / LETTER)
            text = text if len(text) <= most else f"{text[: most - 1]}…"
            pen.text((left, top + cell + number * LINE), text, fill="black", font=font)
    with whole_file(path, "wb") as file:
        sheet.save(file, format="PNG", pnginfo=signed())
