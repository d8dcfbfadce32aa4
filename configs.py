"""From options to every part of a run: device and folder, loaders, network, loss, optimizer,
header.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
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
from base.text import listed, printable
from data import ArrayLoader, FileLoader, Images
from datasets.images import FileImages, Limits, display_names
from loading.plan import BalancedPlan, Plan
from model import Network, Spec
from models import NETWORKS, OURS
from models.layers import SMALL
from models.recompute import recompute
from opts import FREE, Options
from report.console import Console
from report.report import Report
from run import checkpoint, folder, memory
from run.checkpoint import Progress, Saved
from run.memory import room_for
from run.run import Run, RunOptions, ending
from run.signals import Signals
from run.watch import Watch
from training.batchnorm import synchronise
from training.compiled import Compiled
from training.metrics import Criterion
from training.ranks import Ranks, join, leave, make_distributed
from training.replicas import Replicas
from training.schedule import Schedule, make_schedule
from training.step import Step
from training.updater import Updater, has_batch_norm, make_optimizer
from transforms import Pipeline

# Images that mean and standard deviation are taken from.
SAMPLE = 10_000
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def start(options: Options) -> Iterator[Run]:
    """Open the run's folder and give what the loop needs of its surroundings. Raises Refused."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    local = int(os.environ.get("LOCAL_RANK") or 0)
    device = utils.device_for(options.GPU, options.gpus, local, here)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = join(device, options.resume_command)
    _set_backends(options)
    utils.keep_memory()
    utils.reseed(device, options.manualSeed, "weights")

    new = ranks.first and not options.folder.exists()
    lock = folder.Lock(options.folder) if ranks.first else contextlib.nullcontext()

    # Signals before the lock: from here on a signal finds someone who answers it.
    with Signals() as signals, lock:
        try:
            # One rank looks at the folder and changes it; the others read what it left.
            with ranks.in_turn("folder"):
                if ranks.first:
                    resume, overwrite = options.continue_, options.overwrite
                    folder.prepare_folder(options.folder, resume=resume, overwrite=overwrite)
                run = _make_run(options, ranks, device, signals)
            with ending(run):
                yield run
            leave()
        except Refused:
            # Nothing half-written where nothing was.
            if new:
                folder.remove_empty(options.folder)
            raise


def _set_backends(options: Options) -> None:
    """Set what torch keeps for the whole process."""
    torch.backends.cudnn.enabled = options.backend == "cudnn"
    # DataParallel's threads are new in each step and would search anew in each.
    searches = options.backend == "cudnn" and not options.deterministic and options.gpus == 1
    torch.backends.cudnn.benchmark = searches
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.deterministic:
        # cuBLAS adds up in one order with it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    torch.use_deterministic_algorithms(options.deterministic)


def _make_run(options: Options, ranks: Ranks, device: torch.device, signals: Signals) -> Run:
    where, precision = options.folder, choose_precision(options.precision, device)
    console = Console(where, quiet=not ranks.first, verbose=options.verbose)
    disabled = options.logger == "none" or not ranks.first
    recorded = options.recorded()
    return Run(
        folder=where,
        step=Step(device, ranks, options.manualSeed, options.accumulate, precision, options.gpus),
        options=RunOptions(
            options.nEpochs, options.snapshot, options.overwrite, options.resume_command
        ),
        environment=folder.environment(device, ranks, options.gpus),
        signals=signals,
        console=console,
        report=Report(where, recorded, disabled=disabled, histograms=options.histograms),
        watch=Watch(console, where, device),
        saver=checkpoint.Saver(where / "checkpoints", options.keep, options.save_interval),
        saved=checkpoint.newest(where / "checkpoints") if options.continue_ else None,
    )


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Return autocast's type, None for float32 throughout."""
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if native else "fp32"
    return PRECISIONS[name]


def open_both(options: Options) -> tuple[Images, Images]:
    """Open the training and the test images. Raises Refused."""
    settings: dict[str, Any] = {}
    if options.valShare is not None:
        settings |= {"val_share": options.valShare, "seed": options.manualSeed}
        settings["split_file"] = split_path(options)
    elif options.dataset in ("folder", "ilsvrc2012"):
        settings["index"] = Path(options.expDir, options.dataset)
    if options.storage:
        settings |= {"storage": options.storage, "source": options.dbcollection}
    if options.dataset == "synthetic":
        settings["shape"] = options.synthetic_shape

    name, root = options.dataset, options.data_dir
    train = data.open_images(name, root, "train", **settings)
    test = data.open_images(name, root, "test", classes=train.classes, **settings)
    # Limits belong to the command line, not to a data set: they are set on whatever was opened.
    megabytes, megapixels = options.maxMegabytes, options.maxMegapixels
    limits = Limits(megabytes << 20, megapixels * 10**6, options.followLinks)

    for images in (train, test):
        if isinstance(images, FileImages):
            images.limits = limits

    # Training goes on without them, but a figure of such a class would be missing without a word.
    present = set(np.unique(test.labels).tolist())
    absent = [name for label, name in enumerate(train.classes) if label not in present]
    if absent:
        print(f"warning: {len(absent)} classes have no test image: {listed(absent)}", flush=True)
    return train, test


def split_path(options: Options) -> Path:
    """Return the file that keeps the split of the folder, for all runs."""
    where = Path(options.data_dir or ".").resolve()
    return Path(options.expDir, options.dataset, f"split-{key(str(where)):016x}.csv")


AnyLoader = ArrayLoader | FileLoader


def make_loaders(options: Options, run: Run) -> tuple[AnyLoader, AnyLoader]:
    """Return the loaders of the training and of the test images. Raises Refused."""
    # The first rank may have to fetch them.
    with run.ranks.in_turn("data"):
        train, test = open_both(options)
    run.watch.reads_files = isinstance(train, FileImages)
    if options.valShare is not None:
        sides = f"{len(train)} images to train on, {len(test)} to test on"
        run.console.say(f"split     {sides}: {run.folder / 'split.csv'}")

    # Testing has no steps: what is random must not touch a figure.
    steps, ten = options.steps, options.tenCrop
    plan = _train_plan(options, run, train)
    ranks = run.ranks
    test_plan = Plan(
        len(test), options.batchSize, limit=options.limit, rank=ranks.rank, world=ranks.world
    )
    settings: dict[str, Any] = {
        "workers": options.nThreads,
        "start_method": options.startMethod,
        "timeout": options.timeout,
        "skip": options.badImages == "skip",
    }
    device = run.step.device
    return (
        data.make_loader(train, make_pipeline(options, steps), plan, device, **settings),
        data.make_loader(test, make_pipeline(options, ten=ten), test_plan, device, **settings),
    )


def _train_plan(options: Options, run: Run, images: Images) -> Plan:
    """Return which images make up a training batch. Raises Refused where there are fewer than 2."""
    count, ranks = len(images), run.ranks
    plan = Plan(
        count, options.batchSize, options.manualSeed, True, options.limit, ranks.rank, ranks.world
    )
    if ranks.world > 1 and not options.syncBN and _has_batch_norm(options):
        plan = replace(plan, smallest=2 * ranks.world)
    if options.balanced:
        plan = BalancedPlan(**plan.__dict__, labels=images.labels)
    if plan.image_count < 2:
        found = f"found {plan.image_count}"
        raise Refused(
            f"an epoch needs at least 2 training images, {found}: check {images.where} and --limit"
        )

    left = min(count, options.limit or count) - plan.image_count
    if left:
        few = "1 image" if left == 1 else f"{left} images on {ranks.world} ranks"
        last = f"the last batch of each epoch would be {few}, too few for batch norm"
        run.console.say(f"{last}: it is left out")

    return plan


def _has_batch_norm(options: Options) -> bool:
    """True where the network that will be made norms over the images of one rank."""
    # The seed that the real one is drawn by must not be used up.
    with torch.random.fork_rng(devices=[]):
        return has_batch_norm(model.create(options.netType, 2, options.cropSize))


def make_pipeline(
    options: Options, steps: list[augmentation.Step] | None = None, *, ten: bool = False
) -> Pipeline:
    """Return the pipeline of one pass: with no steps, of testing. Raises Refused."""
    sizes, seed = (options.imageSize, options.cropSize), options.manualSeed
    try:
        return Pipeline(
            steps or [], *sizes, seed=seed, interpolation=options.interpolation, ten=ten
        )
    except ValueError as error:
        raise Refused(f"--augment: {error}") from None


def statistics(options: Options, images: Images) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over the first images of a keyed order;
    cached.
    """
    ours = utils.load_ours("statistics")
    where = f"{images.where} {options.synthetic}"
    if Path(images.where).exists():
        where = str(Path(images.where).resolve())
    sizes = {"imageSize": options.imageSize, "cropSize": options.cropSize}
    # Another folder, count or size must not find these values.
    cache_key = json.dumps({"where": where, "images": len(images), **sizes})

    def compute() -> tuple[list[float], list[float]]:
        plan, cpu = Plan(len(images), 256, limit=SAMPLE), torch.device("cpu")
        skip = options.badImages == "skip"
        loader = data.make_loader(
            images, make_pipeline(options), plan, cpu, workers=options.nThreads, skip=skip
        )
        title = "mean and deviation"
        bar = tqdm(loader.epoch(0), title, len(loader), unit="batch", leave=False, disable=None)
        return ours.measure(batch.images for batch in bar)

    path = Path(options.expDir, options.dataset, "statistics.json")
    return ours.cached(str(path), cache_key, compute)


def make_network(options: Options, run: Run, images: Images) -> Network:
    """Return the network on the run's device, with its weights where a file brings them.

    Raises Refused.
    """
    # Names for people are kept with the weights, where predict.py finds them.
    shown = display_names(images)
    network = model.create(
        options.netType,
        images.classes,
        options.cropSize,
        stem=options.stem,
        image_size=options.imageSize,
        interpolation=options.interpolation,
        display_names=tuple(shown) if shown != images.classes else (),
    )
    if not (options.test or options.netType in OURS):
        model.refuse_size(network)
    if options.syncBN and run.ranks.world > 1:
        synchronise(network, run.step.device)
    if options.freeze:
        model.freeze(network, options.freeze)
    if run.saved is not None:
        _refuse_other(network.spec, run.saved)
    else:
        _initialise(options, run, network, images)
    if options.optimize and not recompute(network):
        run.console.say(f"--optimize changes nothing: {options.netType} repeats no blocks")
    with room_for("the network", run.step.device):
        return network.to(run.step.device).to(memory_format=torch.channels_last)


def _initialise(options: Options, run: Run, network: Network, images: Images) -> None:
    """Fill the network from a file of weights; without one measure mean and deviation of the
    images.
    """
    with run.ranks.in_turn("weights"):
        weights = options.retrain
        if options.pretrained:
            weights = model.published_weights(options.netType)

    if not weights:
        with run.ranks.in_turn("statistics"):
            network.normalise.set(*statistics(options, images))
        return

    # What was reinitialised is said: it decides whether a test of these weights means anything.
    fresh = model.load_weights(network, model.read_weights(weights), weights)
    if fresh:
        made_for = f"{weights} was made for other classes or heads"
        run.console.say(f"{made_for}: reinitialised {', '.join(fresh)}")


def _refuse_other(spec: Spec, saved: Saved) -> None:
    """Raise Refused where the checkpoint that a run resumes from is of another network or other
    classes.
    """
    before = Spec.from_plain(saved.spec)
    names = {"netType": "net_type", "classes": "classes", "stem": "stem"}

    for shown, name in names.items():
        was, now = getattr(before, name), getattr(spec, name)
        if was == now:
            continue
        if name == "classes":
            was, now = f"{len(was)} classes", f"{len(now)} classes or other names"
        raise Refused(
            f"{saved.path} has {shown} {was}, not {now}: leave that as it was, or name another "
            "--expID"
        )

    if (before.crop_size < SMALL) != (spec.crop_size < SMALL):
        raise Refused(
            f"{saved.path} was trained at {before.crop_size} pixels, where {spec.net_type} has "
            "other layers than "
            f"at {spec.crop_size}"
        )


def make_updater(options: Options, run: Run, network: Network) -> Updater:
    """Return what updates the network's weights.

    Raises Refused where batch norm would see single images.
    """
    share = options.batchSize // run.ranks.world
    if has_batch_norm(network) and share // min(options.accumulate, share) < 2:
        raise Refused(
            f"--batchSize {options.batchSize}: {options.netType} has batch norm, which needs at "
            "least 2 images on "
            "each rank and in each part: raise it"
        )
    with room_for("the optimizer's state", run.step.device):
        return _make_updater(options, run, network)


def _make_updater(options: Options, run: Run, network: Network) -> Updater:
    optimizer = make_optimizer(
        network,
        options.optimizer,
        momentum=options.momentum,
        nesterov=options.nesterov,
        backbone=options.backboneLR,
        decay_all=options.decayAll,
    )
    return Updater(
        network,
        optimizer,
        schedule_of(options),
        run.ranks,
        clip=options.clip,
        average=options.ema,
        scaled=run.step.precision == torch.float16,
    )


def memory_to_train(
    options: Options, run: Run, network: nn.Module, updater: Updater, criterion: Criterion
) -> AbstractContextManager[None]:
    """Return a context in which too large a training batch is one line with what fits."""
    trial = memory.train_trial(run.step, options.cropSize, network, criterion)
    least = updater.least_images * run.step.gpus
    return memory.enough_memory(run.step, options.batchSize, trial, least=least)


def memory_to_test(options: Options, run: Run, updater: Updater) -> AbstractContextManager[None]:
    """Return a context in which too large a batch of testing is one line with what fits."""
    trial = memory.test_trial(run.step, options.cropSize, updater.network_for_eval)
    return memory.enough_memory(run.step, options.batchSize, trial, testing=True)


def schedule_of(options: Options) -> Schedule:
    """Return the run's learning rate and weight decay."""
    entry = NETWORKS[options.netType]
    first, decay = entry.lr, options.weightDecay

    # AdamW's decay is not part of the gradient: Loshchilov 2017, arXiv 1711.05101.
    if options.optimizer == "adamw":
        first, decay = 1e-3, 0.05 if decay is None else decay
    return make_schedule(
        lr=options.LR,
        weight_decay=decay,
        first=first,
        regime=entry.regime,
        kind=options.schedule,
        warmup=options.warmup / options.nEpochs,
    )


def make_criterion(options: Options, images: Images, device: torch.device) -> Criterion:
    """Return the loss.

    With --classWeights a class weighs inversely to its images, 1 on average over all images.
    """
    weights = None
    if options.classWeights:
        counts = np.bincount(images.labels, minlength=len(images.classes))
        # A class without images would divide by zero; its weight is never used.
        inverse = len(images) / (len(images.classes) * np.maximum(counts, 1))
        weights = torch.from_numpy(inverse.astype(np.float32)).to(device)

    return Criterion(weights, options.labelSmoothing)


def make_parallel(options: Options, run: Run, network: Network) -> nn.Module:
    """Return the network as it is trained: compiled, over several GPUs, over several ranks, or as
    it is.
    """
    trained: nn.Module = network
    if options.compile and run.step.device.type == "cuda":
        trained = Compiled(network)
    elif options.compile:
        trained = torch.compile(network)  # type: ignore[assignment]

    if options.gpus > 1:
        first = run.step.device.index or 0
        least = 2 if has_batch_norm(network) else 1
        trained = Replicas(trained, list(range(first, first + options.gpus)), least)

    return make_distributed(trained, run.ranks, run.step.device)


def resume(options: Options, run: Run, network: Network, updater: Updater) -> Progress:
    """Fill the run from its checkpoint, if it has one, and write down what it is."""
    # An option that no bit depends on does not break exactness when it changes.
    changed = {name: pair for name, pair in options.changed.items() if name not in FREE}
    progress = run.resume(changed, network, updater, wanted=options.continue_)
    if run.ranks.first:
        split = split_path(options) if options.valShare is not None else None
        folder.record(run.folder, options.recorded(), run.environment, split)
    return progress


def print_header(
    options: Options, run: Run, network: Network, train: AnyLoader, test: AnyLoader
) -> None:
    """Say what is about to be trained, on what and where."""
    lines = {
        "data": _describe_data(options, train, test),
        "pixels": f"{options.imageSize} -> {options.cropSize}, {options.augment}",
        "network": _describe_network(network),
        "training": _describe_training(options, run, len(train)),
        "device": _describe_device(options, run, train),
        "folder": f"{run.folder}",
    }
    if not options.test:
        lines["folder"] += f"; resume with: {run.options.resume_command}"
    run.console.say("\n".join(f"{name:<10}{text}" for name, text in lines.items()))


def _describe_data(options: Options, train: AnyLoader, test: AnyLoader) -> str:
    images = train.images
    counts = np.bincount(images.labels, minlength=len(images.classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    smallest, largest = (f"{printable(images.classes[k])} {counts[k]}" for k in (low, high))
    training = f"{train.plan.image_count} of {len(images)} training"
    testing = f"{test.plan.image_count} of {len(test.images)} test images"
    classes = f"{len(images.classes)} classes, smallest {smallest}, largest {largest}"
    return f"{options.dataset}: {training} and {testing}; {classes}"


def _describe_network(network: Network) -> str:
    total = model.parameter_count(network)
    training = sum(p.numel() for p in network.parameters() if p.requires_grad)
    some = f", {training:,} of them train" if training < total else ""
    cost = f"{model.multiply_adds(network) / 1e9:.3g} billion multiply-adds an image"
    return f"{network.spec.net_type}: {total:,} parameters{some}; {cost}"


def _describe_training(options: Options, run: Run, steps: int) -> str:
    devices, unit = (options.gpus, "GPU") if run.ranks.world == 1 else (run.ranks.world, "rank")
    batch = f"global batch {options.batchSize}"
    if devices > 1:
        batch += f", {options.batchSize / devices:g} a {unit}"
    if options.accumulate > 1:
        batch += f", in {options.accumulate} parts"

    schedule = schedule_of(options)
    rate = f"learning rate {schedule.rate:g}, {schedule.kind} over {options.nEpochs * steps} steps"
    if options.warmup:
        rate += f", {options.warmup:g} epochs of warm-up"
    average = ""
    if options.ema:
        average = (
            f"; averaged weights of decay {options.ema:g} are tested, kept as best and exported"
        )

    epochs = f"{options.nEpochs} epochs of {steps} steps"
    return f"{epochs}, {batch}; {options.optimizer}, {rate}, not scaled with the batch{average}"


def _describe_device(options: Options, run: Run, train: AnyLoader) -> str:
    names = {value: name for name, value in PRECISIONS.items()}
    precision = names[run.step.precision]
    threads = f"{run.ranks.world} x {run.environment['threads']} threads"
    workers = f", {options.nThreads} workers" if isinstance(train, FileLoader) else ""
    together = ""
    if options.gpus > 1:
        together = f", {options.gpus} GPUs by DataParallel (--parallel ranks is faster)"
    return f"{run.environment['device']}, {precision}, {threads}{workers}{together}"
