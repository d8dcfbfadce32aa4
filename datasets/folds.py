"""Folds: parts of the training side that are left out of training in turn, and tested on."""

from dataclasses import replace

import numpy as np
import torch

from base.errors import Refused
from base.randomness import key
from datasets.fold import Fold
from datasets.images import ArrayImages, FileImages


def numbers(images: ArrayImages | FileImages, of: int, seed: int) -> np.ndarray:
    """Return the fold of each image, (N,) from 1.

    The folds differ by at most one image, of each class and in all. Whatever order images are
    listed in, the same ones lie together; an image that is added moves others of its class and of
    those after it.
    """
    called = images.names if isinstance(images, FileImages) else range(len(images))
    keys = [key(seed, name) for name in called]
    order = np.lexsort((np.array(keys, np.uint64), images.labels))
    found = np.empty(len(images), np.int64)
    found[order] = np.arange(len(images)) % of + 1
    return found


def sides(
    images: ArrayImages | FileImages, fold: Fold, seed: int
) -> tuple[ArrayImages | FileImages, ArrayImages | FileImages]:
    """Return the images to train on, and the fold, to test on. Raises Refused."""
    if fold.of > len(images):
        raise Refused(f"{images.where} has {len(images)} images: too few for {fold.of} folds")
    left_out = numbers(images, fold.of, seed) == fold.number
    return _chosen(images, np.flatnonzero(~left_out)), _chosen(images, np.flatnonzero(left_out))


def _chosen(images: ArrayImages | FileImages, indices: np.ndarray) -> ArrayImages | FileImages:
    if isinstance(images, FileImages):
        return images.chosen(indices)
    if not isinstance(images.pixels, torch.Tensor):
        raise Refused(f"{images.where} is read batch by batch: folds need --storage ram")
    pixels = images.pixels[torch.from_numpy(indices)]
    return replace(images, pixels=pixels, labels=images.labels[indices], numbers=indices)
