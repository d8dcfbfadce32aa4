"""What is wrong with options, alone and together: a line each, for people."""

import math
import os
from collections.abc import Iterator

import augmentation
from base.arguments import Every, allowed, columns_of, is_address, is_whole, nearest
from base.text import printable
from datasets import DATASETS
from datasets.fold import Fold
from models import NETWORKS, OURS
from options.table import COLUMNED, ELSEWHERE, FIELDS, FILES, Options
from training.stopping import Stopping


def mistakes(options: Options) -> Iterator[str]:
    """Yield what is wrong with values alone or together; parse what is a text of several values."""
    yield from _wrong_texts(options)
    yield from _wrong_names(options)
    yield from _wrong_pairs(options)
    yield from _wrong_with_ranks(options)


def _wrong_texts(options: Options) -> Iterator[str]:
    """Yield what is wrong with an option that is a text of several values."""
    try:
        options.save_interval = Every.parse(options.saveEvery)
    except ValueError as error:
        yield f"argument --saveEvery: {error}"

    try:
        options.stopping = Stopping.parse(options.patience, options.hours)
    except ValueError as error:
        yield f"argument --patience: {error}"

    parts = options.synthetic.split(":")
    if len(parts) != 3 or not all(is_whole(part) and int(part) > 0 for part in parts):
        form = "IMAGES:CLASSES:PIXELS, for example 512:10:256"
        yield f"argument --synthetic: '{options.synthetic}' is not {form}"
    else:
        options.synthetic_shape = (int(parts[0]), int(parts[1]), int(parts[2]))

    try:
        options.columns = columns_of(options.column)
    except ValueError as error:
        yield f"argument --column: {error}"

    try:
        Fold.parse(options.fold or "1/2")
    except ValueError as error:
        yield f"argument --fold: {error}"

    freeze = options.freeze
    if freeze is not None and freeze != "features" and not (is_whole(freeze) and int(freeze)):
        form = "neither `features` nor a number of layers of at least 1"
        yield f"argument --freeze: '{freeze}' is {form}"

    if options.valShare is not None and not 0 < options.valShare < 1:
        yield f"argument --valShare: {options.valShare:g} is not between 0 and 1"
    for name in ("labelSmoothing", "ema"):
        if (getattr(options, name) or 0) >= 1:
            yield f"argument --{name}: {getattr(options, name):g} is not from 0 to below 1"


def _wrong_names(options: Options) -> Iterator[str]:
    """Yield what is wrong with the names of data set and run, which become folders."""
    dataset, run = options.dataset, options.expID
    if dataset not in DATASETS and not options.storage:
        known = f"{allowed(FIELDS['dataset'])}{nearest(dataset, DATASETS)}"
        yield f"argument --dataset: '{dataset}' is not {known}"
    if not dataset or os.sep in dataset or dataset.startswith("."):
        yield f"argument --dataset: '{dataset}' cannot be the name of a folder"
    if run is not None and (os.sep in run or run in ("", ".", "..") or printable(run) != run):
        yield f"argument --expID: '{run}' cannot be the name of a folder"


def _wrong_pairs(options: Options) -> Iterator[str]:
    """Yield options that exclude or need each other."""
    if options.test and (options.continue_ or not (options.retrain or options.pretrained)):
        yield "--test needs the weights to test: --retrain FILE or --pretrained, and no --continue"
    if options.findLR and (options.test or options.continue_):
        yield "--findLR begins a run of its own: leave out --test and --continue"
    for name in ("fold", "folds"):
        if getattr(options, name) and (options.test or options.findLR):
            yield f"--{name} is of training: leave it out"
    if options.continue_ and options.overwrite:
        yield "--continue keeps the run, --overwrite removes it: leave one of them out"
    if options.flipTest and options.tenCrop:
        yield "--tenCrop has the mirror images of all its crops: leave out --flipTest"
    if options.fit != "crop" and options.tenCrop:
        yield f"--fit {options.fit} shows all of an image, --tenCrop parts: leave one of them out"
    if options.pretrained and options.retrain:
        yield "--pretrained and --retrain exclude each other: name one source of weights"
    yield from _wrong_sources(options)
    if options.part != "val" and not (options.test and options.dataset in FILES):
        yield f"--part {options.part} is of --test on a folder: leave it out"
    if options.valShare is not None and not options.source.own:
        own = f"{options.dataset} has test images of its own"
        yield f"--valShare splits a folder, {own}: leave it out"
    if options.stem != "fast" and options.netType not in OURS:
        theirs = f"{options.netType} is another library's"
        yield f"--stem {options.stem} is of our own networks, {theirs}: leave it out"
    if options.gpus > 1 and options.compile:
        yield "--compile does not go with DataParallel's threads: give --parallel ranks"
    if options.clip == 0:
        yield "--clip 0 leaves nothing of the gradient: raise it, or leave it out"
    if options.gpus > 1 and options.syncBN:
        yield "--syncBN is of ranks: give --parallel ranks, or leave it out"
    if options.nesterov and not (options.optimizer == "sgd" and options.momentum):
        yield "--nesterov is a form of SGD's momentum: leave it out, or set --momentum"


def _wrong_sources(options: Options) -> Iterator[str]:
    """Yield options that are of other sources of images than the one that is asked for."""
    dataset = options.dataset
    if dataset == "table" and not options.labels:
        yield "--dataset table needs a table: give --labels FILE"
    if options.labels and dataset != "table":
        yield f"--labels is of --dataset table, not of {dataset}: leave it out, or give that"
    if options.column and dataset not in COLUMNED:
        yield f"--column is of {', '.join(COLUMNED)}, not of {dataset}: leave it out"
    if options.data_dir and is_address(options.data_dir) and dataset not in ELSEWHERE:
        yield f"--data_dir {options.data_dir}: {dataset} is read from a disk, not from an address"
    if options.decoded and options.test:
        yield "--decoded is for many epochs, --test reads each image once: leave it out"
    if options.decoded and dataset not in FILES and not options.storage:
        yield f"--decoded {options.decoded}: {dataset} is in memory as it is: leave it out"
    if options.decodedDir and options.decoded != "disk":
        yield "--decodedDir is of --decoded disk: give that, or leave it out"
    if options.decodedSize and not options.decoded:
        yield "--decodedSize is of --decoded: give that, or leave it out"
    for name in ("classes", "relabel"):
        if getattr(options, name) and (dataset not in FILES or options.storage):
            yield f"--{name} is of {', '.join(FILES)}, not of {dataset}: leave it out"


def _wrong_with_ranks(options: Options) -> Iterator[str]:
    """Yield what cannot be where several ranks train."""
    ranks = options.ranks
    if ranks > 1 and options.gpus > 1:
        way = f"give torchrun --nproc-per-node {options.nGPU}"
        yield f"--nGPU {options.nGPU} under torchrun: a rank has one GPU, {way}"
    if ranks > 1 and options.badImages == "skip":
        way = "find the bad images first, with `python prepare.py check`"
        yield f"--badImages skip is for one process: {way}"
    if options.batchSize is not None and options.batchSize < ranks:
        few = f"is over all ranks together and there are {ranks}"
        yield f"--batchSize {options.batchSize} {few}: raise it"


def _settle_decoded(options: Options) -> Iterator[str]:
    """Fill in the size that is kept; yield what is wrong with one that is given."""
    if not options.decoded:
        return
    values = {step.name: step.values for step in options.steps}
    size = options.decodedSize
    if not values.keys() & {"resizedcrop", "scale"}:
        if "decodedSize" in options.given and size != options.imageSize:
            one = f"{options.augment} scales all images to --imageSize {options.imageSize}"
            yield f"--decodedSize {size}: {one}: leave it out"
        options.decodedSize = options.imageSize
    elif size is None:
        # A window is then seldom enlarged more than from the file itself; scale's never.
        largest = values["scale"][1] if "scale" in values else 1.25 * options.cropSize
        options.decodedSize = math.ceil(largest)
    elif size < options.cropSize:
        yield f"--decodedSize {size} is less than --cropSize {options.cropSize}: raise it"


def unfitting(options: Options) -> Iterator[str]:
    """Yield what does not go together once all values are known; parse the augmentations."""
    try:
        options.steps = augmentation.parse(options.augment)
    except ValueError as error:
        yield f"argument --augment: {error}"

    if options.fit != "crop" and any(step.name == "scale" for step in options.steps):
        yield f"--fit {options.fit} shows all of an image: leave scale out of --augment"
    yield from _settle_decoded(options)
    begun = options.continue_ and "warmup" not in options.changed
    if options.warmup and options.schedule == "onecycle" and not begun:
        own = "onecycle has a warm-up of its own"
        yield f"--warmup {options.warmup:g}: {own}: leave it out, or give --schedule cosine"
    if options.nEpochs is not None and options.warmup >= options.nEpochs:
        yield f"--warmup {options.warmup:g} leaves nothing of --nEpochs {options.nEpochs}: lower it"

    crop = options.cropSize
    image = options.imageSize
    smallest = NETWORKS[options.netType].smallest
    if crop > image:
        yield f"--cropSize {crop} is larger than --imageSize {image}: lower it, or raise the other"
    if crop < smallest:
        yield f"--cropSize {crop} is too small for {options.netType}: the smallest is {smallest}"
