"""The options of a run: one dataclass that drives `--help`, the checks and the recipe files. Nothing here imports torch.

The names are the Torch7 suite's. `@file` anywhere on the command line reads options from a recipe, one or more a line,
# begins a comment; what stands on the command line itself wins.
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import augmentation
from base.arguments import Parser, allowed, described, kind_of, nearest, option, reader
from base.text import printable
from datasets import DATASETS, Source
from models import NETWORKS, OURS
from training.schedule import KINDS

UNRECORDED = ("continue_", "overwrite", "given", "changed", "argv")  # not part of what a run is


DATA, NET, TRAIN, MACHINE, RUN = "data", "network", "training", "machine", "run folder"
BY_SET = "by data set"
RECIPE_CHARACTERS = 1 << 20
LISTED = f"{', '.join(OURS)}, or any of torchvision's by its name there, for example resnet50"


@dataclass
class Options:
    """All options of main.py. Units stand in the help. None is filled in by `parse` where the data set decides."""

    dataset: str = option("ilsvrc2012", DATA, "the images to train on", listed=", ".join(DATASETS))
    data_dir: str | None = option(None, DATA, "folder of the images", shown="~/.cache/multi-gpu-torch, where it is fetched")
    storage: str | None = option(
        None, DATA, "read dbcollection's HDF5 metadata: disk, batch by batch, or ram, all at once", choices=("disk", "ram"),
        shown="no dbcollection",
    )  # fmt: skip
    dbcollection: str | None = option(
        None,
        DATA,
        "its cache file, or one .h5 file; with it any name in the cache file is a --dataset",
        shown="~/dbcollection.json",
    )
    imageSize: int = option(None, DATA, "shorter side images are scaled to, pixels", low=1, shown=BY_SET)
    cropSize: int = option(None, DATA, "side of the square the network sees, pixels", low=1, shown=BY_SET)
    augment: str = option(None, DATA, "augmentations, `pad:4,crop,flip,jitter:0.4` or `none`", shown=BY_SET)
    interpolation: str = option("bilinear", DATA, "resizing filter", choices=("bilinear", "bicubic"))
    valShare: float | None = option(None, DATA, "share of a folder without val/ that is tested on, 0 to 1", low=0, shown="none")
    balanced: bool = option(False, DATA, "draw a class first, then one of its training images")
    badImages: str = option("error", DATA, "error, or skip: leave out, count and list them", choices=("error", "skip"))
    maxMegapixels: int = option(200, DATA, "an image file with more is bad", low=1)
    maxMegabytes: int = option(256, DATA, "an image file with more is bad", low=1)
    followLinks: bool = option(False, DATA, "read links that lead out of the folder of the images")
    limit: int | None = option(None, DATA, "images a pass, for trying out", low=1, shown="all")
    tenCrop: bool = option(False, DATA, "test on the mean of four corners, centre and their mirror images")
    synthetic: str = option("512:10:256", DATA, "synthetic images: how many, classes, pixels a side")

    netType: str = option("alexnetbn", NET, "network", choices=NETWORKS, listed=LISTED)
    stem: str = option("fast", NET, "first layers below 64 pixels: fast, or fine (stride 1)", choices=("fast", "fine"))
    retrain: str | None = option(None, NET, "start from the weights, mean and std in this file", shown="none")
    pretrained: bool = option(False, NET, "start from torchvision's published weights for this network")
    freeze: str | None = option(None, NET, "hold weights: `features`, or how many last layers train", shown="none")
    optimize: bool = option(False, NET, "recompute activations in the backward pass, to save memory")

    nEpochs: int = option(None, TRAIN, "epochs", low=1, shown=BY_SET)
    batchSize: int = option(128, TRAIN, "images an optimizer step, over all GPUs together", low=1)
    LR: float | None = option(None, TRAIN, "learning rate, the highest one", low=0, shown="the network's; 0.001 for adamw")
    backboneLR: float = option(1.0, TRAIN, "learning rate of all but the last layer, as a factor", low=0)
    classWeights: bool = option(False, TRAIN, "weigh the loss by the inverse frequency of a class")
    optimizer: str = option("sgd", TRAIN, "optimizer", choices=("sgd", "adamw"))
    momentum: float = option(0.9, TRAIN, "momentum of SGD", low=0)
    nesterov: bool = option(False, TRAIN, "Nesterov's form of momentum")
    weightDecay: float | None = option(None, TRAIN, "weight decay, held", low=0, shown="the regime's; 0.05 for adamw")
    decayAll: bool = option(True, TRAIN, "weight decay of biases and batch norms too")
    schedule: str = option(
        None, TRAIN, "learning rate over the run", choices=KINDS, shown="the network's regime; constant where --LR is given"
    )
    warmup: float = option(0.0, TRAIN, "epochs in which the learning rate rises first", low=0)
    labelSmoothing: float = option(0.0, TRAIN, "share of a label that is spread over all classes, 0 to 1", low=0)
    accumulate: int = option(1, TRAIN, "parts that a batch is trained in, one after another, to save memory", low=1)
    clip: float | None = option(None, TRAIN, "largest norm of the gradient", low=0, shown="none")
    ema: float | None = option(
        None, TRAIN, "decay of averaged weights, 0.999: they are tested, kept as best and exported", low=0, shown="none"
    )
    manualSeed: int = option(2, TRAIN, "seed of all random numbers", low=0)

    GPU: int | None = option(None, MACHINE, "first GPU, from 0; -1: the CPU", low=-1, shown="a GPU where there is one")
    nGPU: int = option(1, MACHINE, "GPUs, with DataParallel", low=1)
    syncBN: bool = option(False, MACHINE, "batch norm over the images of all ranks")
    precision: str = option(
        "auto", MACHINE, "auto (bf16 where a GPU has it, else fp32), fp32 (without TF32), bf16, fp16",
        choices=("auto", "fp32", "bf16", "fp16"),
    )  # fmt: skip
    compile: bool = option(False, MACHINE, "compile the network (needs a C++ compiler)")
    deterministic: bool = option(False, MACHINE, "the same bits again on a GPU, at some cost in speed")
    backend: str = option("cudnn", MACHINE, "cudnn, or nn: without cuDNN", choices=("cudnn", "nn"))
    nThreads: int = option(
        min(4, len(os.sched_getaffinity(0))),
        MACHINE,
        "processes that read image files; 0: none",
        low=0,
        shown="4, the cores if fewer",
    )
    startMethod: str = option("forkserver", MACHINE, "how they start", choices=("fork", "forkserver", "spawn"))
    timeout: int = option(120, MACHINE, "seconds after which a process that gives nothing is an error", low=1)

    expDir: str = option("./cache", RUN, "folder of all runs")
    expID: str = option(None, RUN, "name of this run", shown="the network's")
    snapshot: int = option(5, RUN, "weights file every n epochs; 0: at the end; -n: one file, rewritten every n")
    saveEvery: str = option("10m", RUN, "checkpoint every so many steps (`500`) or minutes (`10m`), and at epoch ends")
    keep: int = option(3, RUN, "checkpoints that are kept", low=1)
    verbose: bool = option(False, RUN, "a line a step, or a progress bar")
    logger: str = option("full", RUN, "full, or none: no TensorBoard events and no pictures", choices=("full", "none"))
    histograms: bool = option(False, RUN, "histograms of all weights in TensorBoard")
    test: bool = option(False, RUN, "test the weights of --retrain and leave; nothing is trained")
    continue_: bool = option(False, RUN, "go on from the newest checkpoint; start where there is none")
    overwrite: bool = option(False, RUN, "remove the run that is in the folder")

    given: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    changed: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def source(self) -> Source:
        return DATASETS.get(self.dataset, DATASETS["folder"])

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.expDir, self.dataset, self.expID or self.netType)

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        where = ["--dataset", self.dataset, "--expID", str(self.expID)]
        where += [] if self.expDir == "./cache" else ["--expDir", self.expDir]
        return shlex.join(["python", "main.py", *where, "--continue"])

    def recorded(self) -> dict[str, Any]:
        """Return what options.json holds."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in UNRECORDED}


FIELDS = {field.name: field for field in dataclasses.fields(Options) if field.metadata}
# Options that neither the weights nor the figures depend on; a run that goes on may change them and stays exact.
FREE = {
    "storage",
    "nThreads",
    "startMethod",
    "timeout",
    "expDir",
    "expID",
    "snapshot",
    "saveEvery",
    "keep",
    "verbose",
    "logger",
    "histograms",
    *UNRECORDED,
}


def parse(argv: list[str] | None = None) -> Options:
    """Read the command line. Exits with status 2 and one line where it is wrong.

    With --continue the run's own options.json is read first; only what is given anew differs, and stands in `changed`.
    """
    parser = build_parser()
    arguments = _recipes_first(sys.argv[1:] if argv is None else argv, parser)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):  # torchrun starts the run again: it goes on
        arguments = [word for word in arguments if word not in ("--overwrite", "--continue")] + ["--continue"]
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse_unknown(parser, unknown)
    given = vars(known)
    options = _continued(given, parser) if given.get("continue_") else Options(**given)
    options.given = given
    _check(options, parser)
    return _settle(options, parser)


def build_parser() -> Parser:
    about = "Train an image classifier. Every option has a default: `python main.py --dataset mnist` trains at once."
    parser = Parser(prog="main.py", description=about, allow_abbrev=False, epilog="@FILE reads options from a recipe file.")
    groups: dict[str, Any] = {}
    for name, field in FIELDS.items():
        title = field.metadata["group"]
        groups.setdefault(title, parser.add_argument_group(title) if title not in groups else None)
        groups[title].add_argument("--" + name.rstrip("_"), **described(name, field))
    return parser


def _refuse_unknown(parser: Parser, unknown: list[str]) -> NoReturn:
    names = [text for action in parser._actions for text in action.option_strings]
    word = unknown[0].split("=")[0]
    parser.error(f"unknown option {word}{nearest(word, names)} (python main.py --help lists all)")


def _recipes_first(arguments: list[str], parser: Parser) -> list[str]:
    """Put the options of all @files before those of the command line itself, so that the latter win."""
    recipes: list[str] = []
    for word in arguments:
        if word.startswith("@"):
            recipes += _read_recipe(word[1:], parser)
    return recipes + [word for word in arguments if not word.startswith("@")]


def _read_recipe(path: str, parser: Parser) -> list[str]:
    try:
        if not Path(path).is_file() and Path(path).exists():  # a pipe would block
            raise ValueError("not a regular file")
        with open(path, encoding="utf-8") as file:
            text = file.read(RECIPE_CHARACTERS + 1)
        if len(text) > RECIPE_CHARACTERS:
            raise ValueError(f"longer than {RECIPE_CHARACTERS} characters")
        return shlex.split(text, comments=True)
    except (OSError, ValueError) as error:
        parser.error(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}")


def _continued(given: dict[str, Any], parser: Parser) -> Options:
    """Return the options of the run that is to go on, with what is given anew."""
    path = Options(**given).folder / "options.json"
    if not path.exists():
        return Options(**given)
    try:
        stored = json.loads(path.read_text())["options"]
        if not isinstance(stored, dict):
            raise ValueError("it holds no options")
        options = Options(**{name: _stored(name, value) for name, value in stored.items() if name in FIELDS})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, argparse.ArgumentTypeError) as error:
        parser.error(f"cannot read {path}: {error}: put it right, or start anew with --overwrite")
    for name, value in given.items():
        if name in stored and stored[name] != value:
            options.changed[name] = (stored[name], value)
        setattr(options, name, value)
    return options


def _stored(name: str, value: Any) -> Any:
    """Return an option's value from options.json. Raises ValueError where it is none."""
    field = FIELDS[name]
    kind = kind_of(field)
    if value is None or kind is bool:
        if not (value is None and field.default is None) and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
        return value
    return reader(name, kind, field)(str(value))


def _whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _check(options: Options, parser: Parser) -> None:
    """Refuse values that are wrong alone or together."""
    text = options.saveEvery.removesuffix("m")
    number = float(text) if _whole(text.replace(".", "", 1)) else 0.0
    if number <= 0 or (not options.saveEvery.endswith("m") and not _whole(text)):
        parser.error(f"argument --saveEvery: '{options.saveEvery}' is neither steps (`500`) nor minutes (`10m`)")
    options.storage = options.storage or ("disk" if options.dbcollection else None)
    if options.dataset not in DATASETS and not options.storage:
        parser.error(
            f"argument --dataset: '{options.dataset}' is not {allowed(FIELDS['dataset'])}{nearest(options.dataset, DATASETS)}"
        )
    if not options.dataset or os.sep in options.dataset or options.dataset.startswith("."):
        parser.error(f"argument --dataset: '{options.dataset}' is no name of a folder")
    if options.test and (options.continue_ or not (options.retrain or options.pretrained)):
        parser.error("--test needs the weights to test: --retrain FILE or --pretrained, and no --continue")
    if options.continue_ and options.overwrite:
        parser.error("--continue and --overwrite exclude each other: the one keeps the run, the other removes it")
    if options.valShare is not None and not 0 < options.valShare < 1:
        parser.error(f"argument --valShare: {options.valShare:g} is not between 0 and 1")
    if options.valShare is not None and options.dataset != "folder":
        parser.error(f"--valShare splits a folder, {options.dataset} has test images of its own: leave it out")
    if options.freeze is not None and options.freeze != "features" and not (_whole(options.freeze) and int(options.freeze)):
        parser.error(f"argument --freeze: '{options.freeze}' is neither `features` nor a number of layers from 1 on")
    if options.stem != "fast" and options.netType not in OURS:
        parser.error(f"--stem {options.stem} is of our own networks, {options.netType} is torchvision's: leave it out")
    if options.pretrained and options.retrain:
        parser.error("--pretrained and --retrain exclude each other: name one source of weights")
    if options.nesterov and not (options.optimizer == "sgd" and options.momentum):
        parser.error("--nesterov is a form of SGD's momentum: leave it out, or set --momentum")
    for name in ("labelSmoothing", "ema"):
        if (getattr(options, name) or 0) >= 1:
            parser.error(f"argument --{name}: {getattr(options, name):g} is not from 0 to below 1")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and options.nGPU > 1:
        parser.error(f"--nGPU {options.nGPU} under torchrun: a rank has one GPU, give torchrun --nproc-per-node {options.nGPU}")
    if ranks > 1 and options.badImages == "skip":
        parser.error("--badImages skip is for one process: find the bad images first, with `python prepare.py check`")
    if options.batchSize < ranks:
        parser.error(f"--batchSize {options.batchSize} is over all ranks together and there are {ranks}: raise it")
    parts = options.synthetic.split(":")
    if len(parts) != 3 or not all(_whole(part) and int(part) > 0 for part in parts):
        parser.error(f"argument --synthetic: '{options.synthetic}' is not IMAGES:CLASSES:PIXELS, for example 512:10:256")
    name = options.expID
    if name is not None and (os.sep in name or name in ("", ".", "..") or printable(name) != name):
        parser.error(f"argument --expID: '{name}' is no name of a folder")


def _settle(options: Options, parser: Parser) -> Options:
    """Fill in what the data set decides, and refuse sizes that do not go together."""
    source = options.source
    options.imageSize = options.imageSize or max(source.imageSize, options.cropSize or 0)
    options.cropSize = options.cropSize or min(source.cropSize, options.imageSize)
    options.nEpochs = options.nEpochs or source.nEpochs
    options.expID = options.expID or options.netType
    if options.test:  # in a folder of its own, which the next test may take
        options.expID, options.overwrite = f"{options.expID}-test", True
    if options.augment is None:
        options.augment = source.augment
    try:
        augmentation.parse(options.augment)
    except ValueError as error:
        parser.error(f"argument --augment: {error}")
    if options.warmup >= options.nEpochs:
        parser.error(f"--warmup {options.warmup:g} leaves nothing of --nEpochs {options.nEpochs}: lower it")
    smallest = NETWORKS[options.netType].smallest
    if options.cropSize > options.imageSize:
        parser.error(
            f"--cropSize {options.cropSize} is larger than --imageSize {options.imageSize}: lower it, or raise the other"
        )
    if options.cropSize < smallest:
        parser.error(f"--cropSize {options.cropSize} is too small for {options.netType}: the smallest is {smallest}")
    return options
