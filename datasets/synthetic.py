"""Made-up images with a learnable label: no files needed, any count, classes and size."""

import numpy as np
import torch

from base.errors import Refused
from base.randomness import bits, shuffled, uniforms
from datasets.images import ArrayImages

# Of pixels.
MAX_BYTES = 16 << 30


def synthetic(
    data_dir: str | None,
    part: str,
    *,
    classes: list[str] | None = None,
    shape: tuple[int, int, int] = (512, 10, 256),
) -> ArrayImages:
    """Return images of random colour noise over a pattern of their class.

    shape: images to train on, classes, pixels a side; a quarter as many images test. The same
    arguments give the same pixels. data_dir and classes are not used.
    """
    count, kinds, side = shape
    if count * 3 * side * side > MAX_BYTES:
        size = f"{count * 3 * side * side} bytes of memory"
        raise Refused(f"{count}:{kinds}:{side} would take {size}", limit="synthetic")

    count = count if part == "train" else max(kinds, count // 4)
    stream = f"synthetic {part}"
    indices = np.arange(count)
    labels = shuffled(indices, count, 0, 0, stream) % kinds
    coarse = uniforms(0, 0, np.arange(kinds), 3 * 4 * 4, "synthetic pattern").view(kinds, 3, 4, 4)
    patterns = torch.nn.functional.interpolate(coarse * 160, (side, side), mode="bilinear")
    pixels = torch.empty(count, 3, side, side, dtype=torch.uint8)

    words = -(-3 * side * side // 8)

    # One at a time: the whole set as float would take four times its memory.
    for index in indices:
        noise = bits(0, 0, indices[index : index + 1], words, stream).view(np.uint8)[0]
        noise = noise[: 3 * side * side]
        image = torch.from_numpy(noise % 96).view(3, side, side) + patterns[labels[index]]
        pixels[index] = image.to(torch.uint8)

    names = [f"pattern {kind}" for kind in range(kinds)]
    return ArrayImages(pixels, labels.astype(np.int64), names, "synthetic")
