"""Image files of all kinds are read as other decoders read them, or refused with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from datasets import decode


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
