"""From an image file to the pixels of one window of it.

The window comes first: the header tells the size, a JPEG that is far too large is decoded at a
reduced scale, and only the window is resized, with the antialiasing filter reaching over its border
as if the whole image had been resized. EXIF orientation is ignored, as torchvision and timm do,
unless it is asked for: sizes and windows are then those of the turned image.

A decoder's doubts about the pixels (cut, corrupt data) make an image bad; those about its metadata
do not.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from augmentation.resize import cut, resize
from base.errors import OverLimit
from transforms import Scaling, Window

JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"
# Pillow's names. Of GIF and TIFF the first frame is taken.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# What libjpeg warns of without a doubt about a pixel: jerror.h's JWRN_NOT_SEQUENTIAL,
# JWRN_JFIF_MAJOR, JWRN_BOGUS_ICC, JWRN_EXTRANEOUS_DATA and JWRN_ADOBE_XFORM.
HARMLESS = (
    "Invalid SOS parameters",
    "unknown JFIF revision",
    "bad ICC marker",
    "extraneous bytes",
    "Unknown Adobe color transform",
)
# Of the EXIF standard (CIPA DC-008): where the stored first row and column are to be seen.
ORIENTATION = 0x0112
# Its value -> the direction in which rows and columns are stored; from 5 on the two are swapped.
_STORED_FROM = {
    1: (1, 1),
    2: (1, -1),
    3: (-1, -1),
    4: (-1, 1),
    5: (1, 1),
    6: (-1, 1),
    7: (-1, -1),
    8: (1, -1),
}
# Of an image: 600 MB when decoded.
MAX_PIXELS = 200_000_000


def size(data: bytes, most: int = MAX_PIXELS, *, turn: bool = False) -> tuple[int, int]:
    """Return width and height in pixels from the file's header; turn: as EXIF says.

    Raises ValueError with the reason; OverLimit for more than `most` pixels.
    """
    try:
        if data.startswith(JPEG):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        else:
            with _lenient(), _open(data) as image:
                width, height = image.size
    except Exception as error:  # decoders raise anything on strange bytes; each means the same
        raise ValueError(_reason(error, data)) from None
    if width * height > most:
        raise OverLimit(f"{width} x {height} pixels are more than the {most} allowed", "pixels")
    # Orientations from 5 on lie on their side.
    return (height, width) if turn and orientation(data) >= 5 else (width, height)


def orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 (as stored) to 8; 1 where there is none that can be read."""
    # Most files have none at all, which is seen at once.
    if data.startswith(JPEG) and b"Exif\0\0" not in data:
        return 1
    try:
        with _lenient(), _open(data) as image:
            # Pillow turns a TIFF as it reads it, whose tags are no metadata.
            value = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
    except Exception:  # spoilt metadata says nothing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def with_orientation(jpeg: bytes, value: int) -> bytes:
    """Return a JPEG that carries an EXIF orientation, in a segment of its own after the first
    marker.
    """
    exif = Image.Exif()
    exif[ORIENTATION] = value
    content = exif.tobytes()
    content = content if content.startswith(b"Exif") else b"Exif\0\0" + content
    return jpeg[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def turned(image: np.ndarray, value: int) -> np.ndarray:
    """Return stored pixels, (H, W, 3), as they are to be seen."""
    rows, columns = _STORED_FROM[value]
    image = image[::rows, ::columns]
    return np.ascontiguousarray(image.transpose(1, 0, 2) if value >= 5 else image)


def kind(data: bytes) -> str:
    """Return the format's name, by content. Raises ValueError with the reason."""
    if data.startswith(JPEG):
        return "JPEG"
    try:
        with _lenient(), _open(data) as image:
            return str(image.format)
    except Exception as error:
        raise ValueError(_reason(error, data)) from None


def pixels(data: bytes, reduce: int = 1, *, turn: bool = False) -> np.ndarray:
    """Decode to (H, W, 3) uint8 RGB, at 1/reduce of the scale at most; turn: as EXIF says.

    Raises ValueError with the reason.

    How large an image may be is `size`'s to say, which comes first. Greys and palettes become RGB,
    alpha is dropped, 16-bit greys are divided by 257.
    """
    try:
        decoded = _jpeg(data, reduce) if data.startswith(JPEG) else None
        if decoded is None:
            with _lenient(), _open(data) as image:
                decoded = _to_rgb(image)
    except Exception as error:
        raise ValueError(_reason(error, data)) from None
    value = orientation(data) if turn else 1
    return turned(decoded, value) if value > 1 else decoded


def read_windows(
    data: bytes,
    boxes: np.ndarray,
    window: Window,
    *,
    interpolation: str = "bilinear",
    turn: bool = False,
) -> Tensor:
    """Return parts of one image, resized.

    boxes: one row of the window's, (4,) left, top, right, bottom in pixels of the image as `size`
    has it -> (3, S, S) uint8; or (parts, 4), all of one size -> (parts, 3, S, S); turn: as EXIF
    says. Raises ValueError with the reason.
    """
    rows = boxes.reshape(-1, 4)
    left, top, right, bottom = rows[0]
    reduce = _reduction(min(right - left, bottom - top) / window.size, window.headroom)
    image = pixels(data, reduce, turn=turn)
    if reduce > 1:
        width, height = size(data, turn=turn)
        rows = rows * np.array([image.shape[1] / width, image.shape[0] / height] * 2)

    # No copy: (H, W, 3) memory seen as (1, 3, H, W).
    planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    parts = [cut(planes, box, window.size, window.whole, interpolation)[0] for box in rows]
    return parts[0] if boxes.ndim == 1 else torch.stack(parts)


def scaled(data: bytes, scaling: Scaling, most: int, *, turn: bool = False) -> np.ndarray:
    """Return the whole image as it is kept, (H, W, 3) uint8; turn: as EXIF says.

    most: pixels that it may have then. Raises ValueError with the reason.
    """
    width, height = size(data, most, turn=turn)
    wide, tall = scaling.size(width, height)
    if wide * tall > most:
        raise OverLimit(f"{wide} x {tall} scaled pixels are more than the {most} allowed", "pixels")
    # Squeezed, one axis may be much less too large than the other.
    scale = min(width / wide, height / tall) if scaling.fit == "squash" else height / tall
    image = pixels(data, _reduction(scale, scaling.headroom), turn=turn)
    if image.shape[:2] == (tall, wide):
        return image
    planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    result = resize(planes, (tall, wide), scaling.interpolation)[0].permute(1, 2, 0)
    return np.ascontiguousarray(result.numpy())


def _reduction(scale: float, headroom: float) -> int:
    """Return 1, 2, 4 or 8: the largest reduction that leaves an image `headroom` times too large.

    scale: stored pixels a pixel of the result. libjpeg reduces by powers of two while it decodes,
    at a fraction of the cost.
    """
    reduce = 1
    while reduce < 8 and scale >= 2 * reduce * headroom:
        reduce *= 2
    return reduce


def _jpeg(data: bytes, reduce: int) -> np.ndarray | None:
    """Decode a grey or colour JPEG; None for what Pillow knows better."""
    height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    if space in ("CMYK", "YCCK"):
        return None
    least = (-(-height // reduce), -(-width // reduce)) if reduce > 1 else (0, 0)

    def decode(content: bytes) -> np.ndarray:
        return simplejpeg.decode_jpeg(content, min_height=least[0], min_width=least[1])

    try:
        return decode(data)
    except ValueError as error:
        if not any(words in str(error) for words in HARMLESS):
            raise
    return _past_harmless(data, decode)


def _past_harmless(data: bytes, decode: Callable[[bytes], np.ndarray]) -> np.ndarray | None:
    """Decode a JPEG whose header is doubted, without what raises the doubt: what is said of the
    pixels then counts.
    """
    try:
        return decode(_plain_jpeg(data))
    except ValueError as error:
        # Stray bytes between two parts hurt nothing; Pillow refuses a file that was cut.
        if "extraneous bytes" in str(error):
            return None
        raise


# A marker in the data of a scan: no stuffed 0xff, no restart, no fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOS, _SOF0, _SOF1, _APP0, _APP14, _COMMENT, _END = 0xDA, 0xC0, 0xC1, 0xE0, 0xEE, 0xFE, 0xD9


def _plain_jpeg(data: bytes) -> bytes:
    """Return a JPEG with plain headers: JFIF 1.1, a sequential scan's parameters as the standard
    (ITU T.81, B.2.3) has them, and no metadata.
    """
    parts, at, sequential = [data[:2]], 2, False

    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _END:
        if data[at + 1] == 0xFF:
            # A fill byte before a marker.
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = bytearray(data[at : at + 2 + length])
        at += len(segment) if length >= 2 else len(data)
        sequential |= marker in (_SOF0, _SOF1)
        if marker == _APP0 and segment[4:9] == b"JFIF\0":
            segment[9:11] = b"\x01\x01"
        if marker == _SOS and sequential:
            # The first and the last coefficient, and no successive approximation.
            segment[-3:] = b"\x00\x3f\x00"
        if not (_APP0 < marker < _APP14 or marker in (_APP14 + 1, _COMMENT)):
            parts.append(bytes(segment))
        if marker == _SOS:
            found = _MARKER.search(data, at)
            end = found.start() if found else len(data)
            parts.append(data[at:end])
            at = end

    return b"".join([*parts, data[at:]])


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """Let Pillow's warnings pass, which are of metadata; of pixels it raises errors. That alpha is
    dropped is meant.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes) -> Image.Image:
    # Pillow's own limit is lower than ours, which `size` has checked.
    Image.MAX_IMAGE_PIXELS = None
    if data.startswith(PNG):
        data = _plain_png(data)
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _plain_png(data: bytes) -> bytes:
    """Return a PNG without text and colour profile, which Pillow would refuse a whole image for."""
    parts, at, dropped = [data[:8]], 8, False

    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            dropped = True
        else:
            parts.append(data[at:end])
        at = end

    return b"".join(parts) if dropped else data


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of no known range")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64) // 257
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, 2)
    return np.array(image.convert("RGB"))


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not a JPEG, PNG, WebP, BMP, GIF or TIFF image (it starts with {data[:8]!r})"
    if isinstance(error, KeyError):
        # simplejpeg's, of a colour space that it did not get to.
        return "the JPEG's header is cut or damaged"
    return str(error).strip().replace("\n", " ") or type(error).__name__
