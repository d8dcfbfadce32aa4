"""Image files of all kinds are read as other decoders read them, or refused with a reason."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from base.errors import OverLimit
from datasets import decode
from preparation.shrink import smaller_file


def test_a_palette_with_transparent_colours_is_read() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(200)))
    assert decode.pixels(buffer.getvalue()).shape == (8, 8, 3)


def test_stray_bytes_in_a_jpeg_are_passed_over_and_a_cut_one_refused(
    photographs: list[np.ndarray],
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photographs[0][:64, :64]).save(buffer, "JPEG")
    data = buffer.getvalue()
    stray = data[:-2] + b"\x01\x02\x03\x04" + data[-2:]
    assert (decode.pixels(stray) == decode.pixels(data)).all()
    with pytest.raises(ValueError):
        decode.pixels(data[: len(data) * 2 // 3])


def encoded(pixels: np.ndarray, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def as_samsung(jpeg: bytes) -> bytes:
    """The scan header that Samsung's panorama firmware writes: all three parameters 0."""
    start = jpeg.index(b"\xff\xda")
    at = start + 5 + 2 * jpeg[start + 4]
    return jpeg[:at] + b"\0\0\0" + jpeg[at + 3 :]


def as_unknown_jfif(jpeg: bytes) -> bytes:
    at = jpeg.index(b"JFIF\0") + 5
    return jpeg[:at] + b"\x09\x09" + jpeg[at + 2 :]


def with_bad_icc(jpeg: bytes) -> bytes:
    """A colour profile's marker that says it is part 3 of 2."""
    segment = b"ICC_PROFILE\0\x03\x02" + bytes(40)
    return jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


DOUBTED = [as_samsung, as_unknown_jfif, with_bad_icc]


@pytest.mark.parametrize("spoil", DOUBTED)
def test_a_jpeg_is_good_whatever_its_metadata(
    spoil: Callable[[bytes], bytes], photographs: list[np.ndarray]
) -> None:
    good = encoded(photographs[0][:96, :128], "JPEG", quality=92)
    assert (decode.pixels(spoil(good)) == decode.pixels(good)).all()


@pytest.mark.parametrize("spoil", DOUBTED)
def test_a_doubted_header_hides_no_spoilt_pixels(
    spoil: Callable[[bytes], bytes], photographs: list[np.ndarray]
) -> None:
    data = bytearray(spoil(encoded(photographs[0][:96, :128], "JPEG", quality=92)))
    data[-400:-380] = b"\xff\xd7" * 10
    with pytest.raises(ValueError, match=r"Corrupt JPEG|Premature"):
        decode.pixels(bytes(data))
    with pytest.raises(ValueError):
        decode.pixels(bytes(data[:-500]))


def test_metadata_that_pillow_doubts_makes_no_image_bad(photographs: list[np.ndarray]) -> None:
    pixels = photographs[0][:40, :50]
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    assert (decode.pixels(encoded(pixels, "PNG", pnginfo=info)) == pixels).all()
    spoilt = decode.with_orientation(encoded(pixels, "JPEG"), 6).replace(b"MM\0*", b"MM\0\xff")
    assert decode.orientation(spoilt) == 1
    assert decode.pixels(spoilt, turn=True).shape == (40, 50, 3)


def test_a_png_with_a_spoilt_chunk_of_pixels_is_refused(photographs: list[np.ndarray]) -> None:
    data = encoded(photographs[0][:40, :50], "PNG")
    at = data.index(b"IDAT") + 4
    packed = zlib.compress(b"\0" * 100)
    with pytest.raises(ValueError):
        decode.pixels(data[:at] + packed + data[at + len(packed) :])


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_the_first_frame_of_tiff_and_gif_is_read(kind: str, photographs: list[np.ndarray]) -> None:
    first, second = (Image.fromarray(part[:60, :80]) for part in photographs)
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert decode.kind(buffer.getvalue()) == kind
    assert (decode.pixels(buffer.getvalue()) == wanted).all()
    assert decode.size(buffer.getvalue()) == (80, 60)


def test_a_tiff_of_floating_point_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        decode.pixels(encoded(np.ones((8, 8), np.float32), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_photograph_is_turned_as_pillow_turns_it(
    kind: str, value: int, photographs: list[np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[decode.ORIENTATION] = value
    data = encoded(photographs[0][:40, :64], kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    turned = decode.pixels(data, turn=True)
    assert turned.shape == wanted.shape
    assert np.abs(turned.astype(int) - wanted).max() <= (2 if kind == "JPEG" else 0)
    assert decode.size(data, turn=True) == wanted.shape[1::-1]
    assert decode.pixels(data).shape == (40, 64, 3)


def test_a_tiff_is_turned_once(photographs: list[np.ndarray]) -> None:
    """Pillow follows its orientation, which is a tag of the format, whatever is asked for."""
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6
    pixels = photographs[0][:40, :64]
    data = encoded(pixels, "TIFF", exif=exif)
    for turn in (False, True):
        assert (decode.pixels(data, turn=turn) == np.rot90(pixels, -1)).all()
        assert decode.size(data, turn=turn) == (40, 64)


@pytest.mark.parametrize("value", [1, 3, 6, 8])
def test_a_shrunk_copy_is_seen_as_its_original(value: int, photographs: list[np.ndarray]) -> None:
    """Under either setting of a later run; --exif apply turns the pixels themselves."""
    original = decode.with_orientation(encoded(photographs[0], "JPEG", quality=95), value)
    kept = smaller_file(original, 200, 95)
    assert decode.orientation(kept) == value
    assert decode.size(kept) == (200 * 640 // 427, 200)
    turned = smaller_file(original, 200, 95, turn=True)
    assert decode.orientation(turned) == 1
    assert decode.size(turned) == decode.size(kept, turn=True)
    apart = decode.pixels(turned).astype(int) - decode.pixels(kept, turn=True)
    assert np.abs(apart).mean() < 3
    # One that is small enough already is turned too.
    small = decode.with_orientation(encoded(photographs[0][:100, :80], "JPEG"), value)
    assert smaller_file(small, 200, 95) == small
    assert decode.orientation(smaller_file(small, 200, 95, turn=True)) == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pixels_beyond_the_limit_are_refused_by_their_number(form: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, form)
    assert decode.size(stream.getvalue(), 600) == (30, 20)
    with pytest.raises(OverLimit, match="30 x 20 pixels are more than the 599 allowed"):
        decode.size(stream.getvalue(), 599)
