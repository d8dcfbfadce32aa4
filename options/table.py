"""All options of main.py: a field each, with its default, its group and its line in `--help`."""

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augmentation import Step
from base.arguments import Every, Field, core_count, number_of, option
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
    warmup: float = option(
        0.0, TRAIN, "epochs of linear learning rate warm-up; onecycle has its own", low=0
    )
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
    given: Values = dataclasses.field(default_factory=dict)
    changed: dict[str, tuple[object, object]] = dataclasses.field(default_factory=dict)
    steps: list[Step] = dataclasses.field(default_factory=list)
    save_interval: Every = dataclasses.field(default=Every(None, 10.0))
    synthetic_shape: tuple[int, int, int] = dataclasses.field(default=(512, 10, 256))
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    stopping: Stopping = dataclasses.field(default=Stopping())
    # The highest rate of one cycle that a resumed run began with, None: the network's own.
    peak: float | None = dataclasses.field(default=None)

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
        return [*launcher, str(Path(__file__).resolve().parents[1] / "main.py")]

    def command_to_continue(self, argv: list[str]) -> str:
        """Return the command that goes on with all that a command line asks for."""
        given = [word for word in argv if word not in ("--overwrite", "--continue")]
        return shlex.join([*self._launched, *given, "--continue"])

    @property
    def may_differ(self) -> set[str]:
        """Options that runs of one cross-validation may differ in: which machine they had, what no
        metric depends on, and what the number of images decides.
        """
        where = {
            name for name, field in FIELDS.items() if field.metadata["group"] in (MACHINE, RUN)
        }
        decided = {name for name in ("nEpochs", "batchSize") if name not in self.given}
        return FREE | where | decided | {"fold"}

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
