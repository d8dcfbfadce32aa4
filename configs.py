"""From options to a run: device and folder, loaders, network, optimizer."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import augmentation
import data
import model
import utils
from base.errors import Refused
from base.randomness import key
from base.text import printable
from datasets.images import ArrayImages, FileImages, Limits, titles
from loading.plan import BalancedPlan, Plan
from model import Network, pretrained, read_weights
from models import NETWORKS
from models.layers import SMALL
from models.recompute import recompute
from opts import FREE, Options
from report.console import Logger
from report.report import Report
from run import checkpoint, folder
from run.folder import Lock, _remove_empty, environment, prepare_folder
from run.run import Run, ending
from run.signals import Signals
from training.batchnorm import synchronise
from training.metrics import Criterion
from training.ranks import Ranks, join, leave, wrap
from training.schedule import Schedule, schedule
from training.updater import Updater, optimizer
from transforms import Pipeline

SAMPLE = 10_000  # images that mean and standard deviation are taken from


@contextlib.contextmanager
def start(options: Options) -> Iterator[Run]:
    """Open the run's folder and give what the loop needs of its surroundings. Raises Refused."""
    device = utils.device_for(options.GPU, options.nGPU, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = join(device)
    torch.backends.cudnn.enabled = options.backend == "cudnn"
    torch.backends.cudnn.benchmark = options.backend == "cudnn" and not options.deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS adds up in one order with it
    torch.use_deterministic_algorithms(options.deterministic)
    utils.keep_memory()
    utils.reseed(device, options.manualSeed, "weights")
    new = ranks.first and not options.folder.exists()
    with Signals() as signals, Lock(options.folder) if ranks.first else contextlib.nullcontext():
        try:
            with ranks.in_turn("folder"):
                if ranks.first:
                    prepare_folder(options.folder, go_on=options.continue_, overwrite=options.overwrite)
                run = _run(options, ranks, device, signals)
            with ending(run):
                yield run
            leave()
        except Refused:
            if new:  # nothing half-written where nothing was
                _remove_empty(options.folder)
            raise


def _run(options: Options, ranks: Ranks, device: torch.device, signals: Signals) -> Run:
    folder, bare = options.folder, options.logger == "none" or not ranks.first
    return Run(
        folder=folder, device=device, ranks=ranks, seed=options.manualSeed, signals=signals,
        logger=Logger(folder, quiet=not ranks.first, verbose=options.verbose),
        report=Report(folder, options.recorded(), bare=bare, histograms=options.histograms),
        saver=checkpoint.Saver(folder / "checkpoints", options.keep), interval=checkpoint.Interval(options.saveEvery),
        resume_command=options.resume_command, snapshot=options.snapshot, epochs=options.nEpochs,
        settings=environment(device, ranks),
        saved=checkpoint.newest(folder / "checkpoints") if options.continue_ else None,
        overwrite=options.overwrite, accumulate=options.accumulate,
        precision=precision(options.precision, device),
    )  # fmt: skip


def open_both(options: Options) -> tuple[data.Images, data.Images]:
    """Open the training and the test images. Raises Refused."""
    more: dict[str, Any] = {}
    if options.valShare is not None:
        more |= {"val_share": options.valShare, "seed": options.manualSeed, "split_file": split_path(options)}
    elif options.dataset in ("folder", "ilsvrc2012"):
        more["index"] = Path(options.expDir, options.dataset)
    if options.storage:
        more |= {"storage": options.storage, "source": options.dbcollection}
    if options.dataset == "synthetic":
        more["shape"] = tuple(int(part) for part in options.synthetic.split(":"))
    train = data.open_images(options.dataset, options.data_dir, "train", **more)
    test = data.open_images(options.dataset, options.data_dir, "test", classes=train.classes, **more)
    limits = Limits(options.maxMegabytes << 20, options.maxMegapixels * 10**6, options.followLinks)
    for images in (train, test):
        if isinstance(images, FileImages):
            images.limits = limits
    absent = sorted(set(range(len(train.classes))) - set(np.unique(test.labels).tolist()))
    if absent:
        names = ", ".join(printable(train.classes[label]) for label in absent[:5])
        print(f"warning: {len(absent)} classes have no test image: {names}{', ...' if len(absent) > 5 else ''}", flush=True)
    return train, test


def split_path(options: Options) -> Path:
    """Return the file that keeps the split of the folder, for all runs."""
    where = Path(options.data_dir or ".").resolve()
    return Path(options.expDir, options.dataset, f"split-{key(str(where)):016x}.csv")


def loaders(options: Options, run: Run) -> tuple[Any, Any]:
    """Return the loaders of the training and of the test images."""
    with run.ranks.in_turn("data"):  # which the first may have to fetch
        train, test = open_both(options)
    rank, world = run.ranks.rank, run.ranks.world
    plan = Plan(len(train), options.batchSize, options.manualSeed, True, options.limit, rank, world)
    if options.balanced:
        plan = BalancedPlan(**plan.__dict__, labels=train.labels)
    if not len(plan) or plan.images < 2:
        raise Refused(f"{plan.images} training images are in a pass, 2 are needed at least: look at {train.where} and --limit")
    if plan.images < min(len(train), options.limit or len(train)):
        run.logger.say("the last batch of each epoch would be 1 image, too few for batch norm: it is left out")
    if options.valShare is not None:
        run.logger.say(f"split     {len(train)} images to train on, {len(test)} to test on: {run.folder / 'split.csv'}")
    run.files = isinstance(train, FileImages)
    test_plan = Plan(len(test), options.batchSize, limit=options.limit, rank=rank, world=world)
    settings: dict[str, Any] = {"workers": options.nThreads, "start_method": options.startMethod, "timeout": options.timeout}
    settings["skip"] = options.badImages == "skip"
    return (
        data.loader(train, pipeline(options, augmentation.parse(options.augment)), plan, run.device, **settings),
        data.loader(test, pipeline(options, [], ten=options.tenCrop), test_plan, run.device, **settings),
    )


def pipeline(options: Options, steps: list[augmentation.Step], *, ten: bool = False) -> Pipeline:
    sizes = options.imageSize, options.cropSize
    try:
        return Pipeline(steps, *sizes, seed=options.manualSeed, interpolation=options.interpolation, ten=ten)
    except ValueError as error:
        raise Refused(f"--augment: {error}") from None


def statistics(options: Options, images: data.Images) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over the first images of a keyed order, from the cache if there."""
    ours = utils.load_ours("statistics")
    where = str(Path(images.where).resolve()) if Path(images.where).exists() else f"{images.where} {options.synthetic}"
    key = json.dumps({"where": where, "images": len(images), "imageSize": options.imageSize, "cropSize": options.cropSize})

    def compute() -> tuple[list[float], list[float]]:
        plan, skip = Plan(len(images), 256, limit=SAMPLE), options.badImages == "skip"
        source = data.loader(images, pipeline(options, []), plan, torch.device("cpu"), workers=options.nThreads, skip=skip)
        bar = tqdm(source.epoch(0), "mean and deviation", len(source), unit="batch", leave=False, disable=None)
        return ours.measure(batch.images for batch in bar)

    return ours.cached(str(Path(options.expDir, options.dataset, "statistics.json")), key, compute)


def header(options: Options, run: Run, network: model.Network, train: Any, test: Any) -> None:
    """Say what is about to be trained, on what and where."""
    images, counts = train.images, np.bincount(train.images.labels, minlength=len(train.images.classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    smallest, largest = (f"{printable(images.classes[label])} {counts[label]}" for label in (low, high))
    sizes = f"{train.plan.images} of {len(images)} training and {test.plan.images} of {len(test.images)} test images"
    free = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = model.parameters(network)
    some = f", {free:,} of them train" if free < total else ""
    cost = model.multiply_adds(network) / 1e9
    plan = planned(options)
    warm = f", {options.warmup:g} epochs of warm-up" if options.warmup else ""
    ema = f"; averaged weights of decay {options.ema:g} are tested, kept as best and exported" if options.ema else ""
    devices, unit = (run.ranks.world, "rank") if run.ranks.world > 1 else (options.nGPU, "GPU")
    share = f"{options.batchSize / devices:g} a {unit}" if devices > 1 else ""
    split = f"in {options.accumulate} parts" if options.accumulate > 1 else ""
    batch = ", ".join(part for part in (f"global batch {options.batchSize}", share, split) if part)
    kind = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[run.precision]
    reading = f", {options.nThreads} processes that read" if isinstance(train, data.FileLoader) else ""
    run.logger.say(
        f"data      {options.dataset}: {sizes}; {len(images.classes)} classes, smallest {smallest}, largest {largest}\n"
        f"pixels    {options.imageSize} -> {options.cropSize}, {options.augment}\n"
        f"network   {options.netType}: {total:,} parameters{some}; {cost:.3g} billion multiply-adds an image\n"
        f"training  {options.nEpochs} epochs of {len(train)} steps, {batch}; {options.optimizer}, learning rate {plan.rate:g}, "
        f"{plan.kind} over {options.nEpochs * len(train)} steps{warm}, not scaled with the batch{ema}\n"
        f"device    {run.settings['device']}, {kind}, {run.ranks.world} x {run.settings['threads']} threads{reading}\n"
        f"folder    {run.folder}" + ("" if options.test else f"; go on with: {run.resume_command}")
    )


def network(options: Options, run: Run, images: data.Images) -> model.Network:
    """Return the network on the run's device, with its weights where a file brings them."""
    made = model.create(
        options.netType, images.classes, options.cropSize, stem=options.stem, image_size=options.imageSize,
        interpolation=options.interpolation, titles=tuple(shown) if (shown := titles(images)) != images.classes else (),
    )  # fmt: skip
    if options.syncBN and run.ranks.world > 1:
        synchronise(made, run.device)
    if options.freeze:
        model.freeze(made, options.freeze)
    if run.saved is not None:
        _refuse_other(made.spec, run)
    weights = None
    if run.saved is None:
        with run.ranks.in_turn("weights"):
            weights = options.retrain or (pretrained(options.netType) if options.pretrained else None)
    if weights:
        anew = model.load_weights(made, read_weights(weights), weights)
        if anew:
            run.logger.say(f"{weights} has other classes or heads: {', '.join(anew)} start anew")
    elif run.saved is None:
        with run.ranks.in_turn("statistics"):
            made.normalise.set(*statistics(options, images))
    if options.optimize:
        recompute(made)
    run.model = made.spec.plain()
    return made.to(run.device).to(memory_format=torch.channels_last)


def _refuse_other(spec: model.Spec, run: Run) -> None:
    """Raise Refused where the checkpoint that a run goes on from is of another network or other classes."""
    path, value = run.saved
    before = model.Spec.read(value["model"])
    for name in ("netType", "classes", "stem"):
        was, now = getattr(before, name), getattr(spec, name)
        if was != now:
            shown = (was, now) if name != "classes" else (f"{len(was)} classes", f"{len(now)} classes or other names")
            raise Refused(f"{path} has {name} {shown[0]}, not {shown[1]}: leave that as it was, or name another --expID")
    if (before.cropSize < SMALL) != (spec.cropSize < SMALL):
        raise Refused(
            f"{path} was trained at {before.cropSize} pixels, where {spec.netType} has other layers than at {spec.cropSize}"
        )


def changed(options: Options) -> dict[str, tuple[Any, Any]]:
    """Return the options given anew that the run's bits depend on."""
    return {name: change for name, change in options.changed.items() if name not in FREE}


def precision(name: str, device: torch.device) -> torch.dtype | None:
    """Return autocast's type, None for float32 throughout."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def criterion(options: Options, images: ArrayImages | FileImages, device: torch.device) -> Criterion:
    """Return the loss. With --classWeights a class weighs inversely to its images, 1 on average over all images."""
    weights = None
    if options.classWeights:
        counts = np.bincount(images.labels, minlength=len(images.classes))
        shares = len(images) / (len(images.classes) * np.maximum(counts, 1))
        weights = torch.from_numpy(shares.astype(np.float32)).to(device)
    return Criterion(weights, options.labelSmoothing)


def updates(options: Options, run: Run, network: nn.Module) -> Updater:
    """Return what updates the network's weights."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    share = options.batchSize // run.ranks.world
    if norms and not options.syncBN and share // min(options.accumulate, share) < 2:
        raise Refused(
            f"--batchSize {options.batchSize}: {options.netType} has batch norm, which needs 2 images at least on each rank "
            "and in each part: raise it"
        )
    made = optimizer(
        network, options.optimizer, momentum=options.momentum, nesterov=options.nesterov, backbone=options.backboneLR,
        decay_all=options.decayAll,
    )  # fmt: skip
    return Updater(
        network, made, planned(options), run.ranks, clip=options.clip, average=options.ema,
        scaled=run.precision == torch.float16,
    )  # fmt: skip


def planned(options: Options) -> Schedule:
    entry = NETWORKS[options.netType]
    first, decay = entry.LR, options.weightDecay
    if options.optimizer == "adamw":  # its decay is not part of the gradient: Loshchilov 2017, arXiv 1711.05101
        first, decay = 1e-3, 0.05 if decay is None else decay
    return schedule(
        LR=options.LR, weight_decay=decay, first=first, regime=entry.regime, kind=options.schedule,
        warmup=options.warmup / options.nEpochs,
    )  # fmt: skip


def wrapped(options: Options, run: Run, network: Network) -> nn.Module:
    """Return the network as it is trained: compiled, over several GPUs, over several ranks, or as it is."""
    made: nn.Module = torch.compile(network) if options.compile else network  # type: ignore[assignment]
    return wrap(utils.spread(made, run.device, options.nGPU), run.ranks, run.device)


def record(options: Options, run: Run) -> None:
    """Write down what the run is: from here on its folder holds a run."""
    if run.ranks.first:
        split = split_path(options) if options.valShare is not None else None
        folder.record(run.folder, options.recorded(), run.settings, split)
