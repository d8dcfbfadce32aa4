"""Copy a folder with its large images made smaller, once, so that every later epoch reads and decodes less."""

import functools
import os
import sys
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from augmentation.resize import resize
from base.errors import Refused
from base.text import printable
from datasets import decode
from datasets.images import FileImages
from preparation.each import each, images_of, write_rows


def shrink(data_dir: str, out: str, size: int, quality: int, processes: int) -> int:
    """Copy data_dir to out, shorter sides at most `size` pixels; return the exit status. What is there already stays.

    Raises Refused where the two folders are one or hold each other.
    """
    source, target = Path(data_dir).resolve(), Path(out).resolve()
    if source == target or source in target.parents or target in source.parents:
        raise Refused(f"--out {out} and --data_dir {data_dir} must be apart: choose another folder")
    images = images_of(data_dir)
    work = functools.partial(one, images, str(target), size, quality)
    found = list(each(work, range(len(images)), len(images), "shrinking", processes))
    bad = [(name, reason) for name, _, _, reason in found if reason]
    target.mkdir(parents=True, exist_ok=True)
    write_rows(target / "bad_images.csv", ["path", "reason"], ([printable(part) for part in row] for row in bad))
    before, after = (sum(row[place] for row in found) for place in (1, 2))
    megabytes = f"{before / 1e6:.1f} MB became {after / 1e6:.1f} MB"
    print(f"{len(found) - len(bad)} images, {megabytes} in {out}; {len(bad)} bad ones left out")
    for name, reason in bad[:5]:
        print(f"bad: {printable(name)}: {printable(reason)}", file=sys.stderr)
    return 1 if bad else 0


def one(images: FileImages, target: str, size: int, quality: int, index: int) -> tuple[str, int, int, str]:
    """Copy one image; return its name, its bytes before and after, and why it was left out, or ""."""
    name = images.names[index]
    path = os.path.join(target, name)
    try:
        if os.path.exists(path):
            return name, os.path.getsize(images.path(index)), os.path.getsize(path), ""
        content = images.read(index)
        smaller = smaller_file(content, size, quality)
    except (OSError, ValueError) as error:
        return name, 0, 0, (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(smaller)
    os.replace(temporary, path)
    return name, len(content), len(smaller), ""


def smaller_file(content: bytes, size: int, quality: int) -> bytes:
    """Return the image as JPEG with a shorter side of `size` pixels, or as it is where it is not larger. Raises ValueError."""
    width, height = decode.size(content)
    if min(width, height) <= size:
        decode.pixels(content)  # a bad image is not copied
        return content
    pixels = torch.from_numpy(decode.pixels(content)).permute(2, 0, 1)[None]
    scaled = (size * height // min(width, height), size * width // min(width, height))
    small = resize(pixels, scaled, "bicubic")[0].permute(1, 2, 0)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()), quality, colorsubsampling="420")
