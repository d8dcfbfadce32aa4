"""From an image file to the pixels of one window of it.

The window comes first: the header tells the size, a JPEG that is far too large is decoded at a
reduced scale, and only the window is resized, with the antialiasing filter reaching over its border
as if the whole image had been resized. EXIF orientation is ignored: pixels are taken as they are
stored, as torchvision and timm do.
"""

import io
import warnings

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from augmentation.resize import cut
from base.errors import OverLimit
from transforms import Window

JPEG = b"\xff\xd8\xff"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Of an image: 600 MB when decoded.
MAX_PIXELS = 200_000_000


def size(data: bytes, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Return width and height in pixels from the file's header.

    Raises ValueError with the reason; OverLimit for more than `most` pixels.
    """
    try:
        if data.startswith(JPEG):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        else:
            with _open(data) as image:
                width, height = image.size
    except Exception as error:  # decoders raise anything on strange bytes; each means the same
        raise ValueError(_reason(error, data)) from None
    if width * height > most:
        raise OverLimit(f"{width} x {height} pixels are more than the {most} allowed", "pixels")
    return width, height


def kind(data: bytes) -> str:
    """Return the format's name, by content. Raises ValueError with the reason."""
    if data.startswith(JPEG):
        return "JPEG"
    try:
        with _open(data) as image:
            return str(image.format)
    except Exception as error:
        raise ValueError(_reason(error, data)) from None


def pixels(data: bytes, reduce: int = 1) -> np.ndarray:
    """Decode to (H, W, 3) uint8 RGB, at 1/reduce of the scale at most.

    Raises ValueError with the reason.

    How large an image may be is `size`'s to say, which comes first. Greys and palettes become RGB,
    alpha is dropped, 16-bit greys are divided by 257.
    """
    try:
        if data.startswith(JPEG):
            decoded = _jpeg(data, reduce)
            if decoded is not None:
                return decoded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            # A decoder's doubts about the content are errors; that alpha is dropped is meant.
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            with _open(data) as image:
                return _to_rgb(image)
    except Exception as error:
        raise ValueError(_reason(error, data)) from None


def read_windows(
    data: bytes, boxes: np.ndarray, window: Window, *, interpolation: str = "bilinear"
) -> Tensor:
    """Return parts of one image, resized.

    boxes: one row of the window's, (4,) left, top, right, bottom in pixels of the stored image ->
    (3, S, S) uint8; or (parts, 4), all of one size -> (parts, 3, S, S). Raises ValueError with the
    reason.
    """
    rows = boxes.reshape(-1, 4)
    left, top, right, bottom = rows[0]
    scale = min(right - left, bottom - top) / window.size
    reduce = 1

    # libjpeg scales by powers of two while it decodes, at a fraction of the cost.
    while reduce < 8 and scale >= 2 * reduce * window.headroom:
        reduce *= 2

    image = pixels(data, reduce)
    if reduce > 1:
        width, height = size(data)
        rows = rows * np.array([image.shape[1] / width, image.shape[0] / height] * 2)

    # No copy: (H, W, 3) memory seen as (1, 3, H, W).
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    parts = [cut(planes, box, window.size, window.whole, interpolation)[0] for box in rows]
    return parts[0] if boxes.ndim == 1 else torch.stack(parts)


def _jpeg(data: bytes, reduce: int) -> np.ndarray | None:
    """Decode a grey or colour JPEG; None for what Pillow knows better."""
    height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    if space in ("CMYK", "YCCK"):
        return None
    least = (-(-height // reduce), -(-width // reduce)) if reduce > 1 else (0, 0)
    try:
        return simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
    except ValueError as error:
        # Stray bytes between two parts hurt nothing; Pillow refuses a file that was cut.
        if "extraneous bytes" in str(error):
            return None
        raise


def _open(data: bytes) -> Image.Image:
    # Pillow's own limit is lower than ours, which `size` has checked.
    Image.MAX_IMAGE_PIXELS = None
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64) // 257
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, 2)
    return np.array(image.convert("RGB"))


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not a JPEG, PNG, WebP or BMP image (it starts with {data[:8]!r})"
    return str(error).strip().replace("\n", " ") or type(error).__name__
