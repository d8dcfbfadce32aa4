"""From options to every part of a run: device and folder, loaders, network, loss, optimizer,
header.
"""

import contextlib
import functools
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
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
import opts
import utils
from base.archive import Plain
from base.arguments import is_address, number_of
from base.errors import Interrupted, Refused
from base.files import write_rows
from base.machine import free_memory
from base.randomness import key
from base.text import listed, printable
from data import ArrayLoader, FileLoader, Images, KeptLoader, ResidentLoader
from datasets import changes, folds, table
from datasets import folder as folders
from datasets.classes import chosen as chosen_classes
from datasets.decoded import Kept
from datasets.fold import Fold
from datasets.images import (
    HEADERS,
    FileImages,
    Limits,
    composed,
    display_names,
    files_key,
    relabelled,
    turns,
)
from datasets.listing import told
from datasets.parts import NoPart
from datasets.remote import Cache
from datasets.split import read as read_split
from loading import decode_once
from loading.decode_once import Place, gigabytes
from loading.pixel_folder import PixelFolder
from loading.plan import BalancedPlan, Plan
from model import Network, Spec
from models import NETWORKS, OURS, TIMM, from_timm, weights
from models.layers import SMALL
from models.recompute import recompute
from opts import COLUMNED, FILES, FOLDERS, FREE, Options
from report.console import Console
from report.page import About
from report.report import Report
from run import checkpoint, folder, hook, memory
from run.checkpoint import Progress, Saved
from run.memory import room_for
from run.run import Run, RunOptions, ending
from run.signals import Signals
from run.watch import Watch
from training.batchnorm import synchronise
from training.compiled import Compiled
from training.lr_range import RangeTest
from training.metrics import Criterion
from training.ranks import Ranks, join, leave, make_distributed
from training.replicas import Replicas
from training.schedule import Schedule, make_schedule
from training.step import Step
from training.updater import Updater, has_batch_norm, make_optimizer
from transforms import Pipeline, Scaling

# What a test takes from the weights: a field of theirs, and the option that goes before it.
TESTED_BY = {
    "net_type": "netType",
    "image_size": "imageSize",
    "crop_size": "cropSize",
    "stem": "stem",
    "interpolation": "interpolation",
    "exif": "exif",
    "fit": "fit",
}
# Bytes of a run's files from which on a header says so.
LARGE = 10**9
# Images that mean and standard deviation are taken from.
SAMPLE = 10_000
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def start(options: Options) -> Iterator[Run]:
    """Open the run's folder and give what the loop needs of its surroundings. Raises Refused."""
    here, local = number_of("LOCAL_WORLD_SIZE", 1), number_of("LOCAL_RANK", 0)
    device = utils.device_for(options.GPU, options.gpus, local, here)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = join(device, options.resume_command)
    _set_backends(options)
    utils.keep_memory()
    utils.reseed(device, options.manualSeed, "weights")

    # The folders that this run would make, the innermost first.
    made = [path for path in (options.folder, *options.folder.parents[:2]) if not path.exists()]
    lock = folder.Lock(options.folder)
    # All must have it: a rank without it would make the others wait.
    has_bf16 = not ranks.agree(int(not utils.has_bf16(device)))[0]
    held = lock if ranks.first else contextlib.nullcontext()

    # Signals before the lock: from here on a signal finds someone who answers it.
    with Signals() as signals, held:
        try:
            # One rank looks at the folder and changes it; the others read what it left.
            with ranks.in_turn("folder"):
                if ranks.first:
                    resume, overwrite = options.continue_, options.overwrite
                    folder.prepare_folder(options.folder, resume=resume, overwrite=overwrite)
                run = _make_run(options, ranks, device, signals, lock, has_bf16)
            with ending(run):
                yield run
            leave()
        except (Refused, Interrupted):
            # Nothing half-written where nothing was.
            if made and ranks.first:
                folder.remove_empty(options.folder, made)
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


def _make_run(
    options: Options,
    ranks: Ranks,
    device: torch.device,
    signals: Signals,
    lock: folder.Lock,
    has_bf16: bool,
) -> Run:
    where = options.folder
    saved = checkpoint.newest(where / "checkpoints") if options.continue_ else None
    precision = _precision_name(options.precision, device, saved, has_bf16)
    console = Console(where, quiet=not ranks.first, verbose=options.verbose)
    disabled = options.logger == "none" or not ranks.first
    recorded = options.recorded()
    rescued = replace(options, expID=f"{options.expID}-rescued")
    return Run(
        folder=where,
        step=Step(
            device,
            ranks,
            options.manualSeed,
            options.accumulate,
            PRECISIONS[precision],
            options.gpus,
        ),
        options=RunOptions(
            options.nEpochs,
            options.snapshot,
            options.overwrite,
            options.stopping,
            options.resume_command,
            rescued.folder,
            rescued.resume_command,
        ),
        lock=lock,
        environment={
            **folder.environment(device, ranks, options.gpus),
            "precision": precision,
        },
        signals=signals,
        console=console,
        report=Report(where, recorded, disabled=disabled, histograms=options.histograms),
        watch=Watch(console, where, device),
        saver=checkpoint.Saver(where / "checkpoints", options.keep, options.save_interval),
        saved=saved,
    )


def _precision_name(name: str, device: torch.device, saved: Saved | None, has_bf16: bool) -> str:
    """Return fp32, bf16 or fp16: what "auto" means is settled when a run begins, and kept.

    saved: the checkpoint that the run resumes from; has_bf16: the devices of all ranks do.
    """
    if name != "auto":
        return name
    if saved is not None and "precision" in saved.settings:
        return str(saved.settings["precision"])
    # A checkpoint of before names none: on CPUs that was fp32.
    before = saved is not None and device.type == "cpu"
    return "bf16" if has_bf16 and not before else "fp32"


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
    return images


def _limits(options: Options) -> Limits:
    megabytes, megapixels = options.maxMegabytes, options.maxMegapixels
    return Limits(megabytes << 20, megapixels * 10**6, options.followLinks)


def _set_limits(options: Options, images: Images) -> None:
    """Set what belongs to the command line, not to a data set, on whatever was opened."""
    if isinstance(images, FileImages):
        images.limits = _limits(options)
        images.turn = options.exif == "apply"


def _warn_of_absent(classes: Sequence[str], images: Images, kind: str) -> None:
    """Say which classes are not trained or tested: a figure of them would be missing without a
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


AnyLoader = ArrayLoader | FileLoader | KeptLoader | ResidentLoader


def make_loaders(options: Options, run: Run) -> tuple[AnyLoader, AnyLoader]:
    """Return the loaders of the training and of the test images. Raises Refused."""
    _settle_sizes(options)
    # The first rank may have to fetch them.
    before = run.saved.spec.get("classes", ()) if run.saved is not None else ()
    with run.ranks.in_turn("data"):
        train, test = open_both(options, before)
    _settle_by_images(options, run, len(train))
    run.watch.reads_files = isinstance(train, FileImages) and not options.decoded
    if options.valShare is not None:
        sides = f"{len(train)} images to train on, {len(test)} to test on"
        run.console.say(f"split     {sides}: {run.folder / 'split.csv'}")

    pipeline = make_pipeline(options, options.steps)
    plan = _train_plan(options, run, train)
    if options.decoded:
        tested = test, make_test_pipeline(options), _test_plan(options, run, test)
        return _keeping_loaders(options, run, (train, pipeline, plan), tested)
    return _make_loader(options, run, train, pipeline, plan), _make_test_loader(options, run, test)


def _settle_sizes(options: Options) -> None:
    """Take the sizes that timm's weights were made for, where none are given. Raises Refused."""
    resumes = options.continue_ and (options.folder / folder.RECORD).exists()
    if not options.netType.startswith(TIMM) or resumes:
        return
    if {"cropSize", "imageSize"} & options.given.keys() or options.dataset not in FILES:
        return
    about = from_timm.published(options.netType)
    options.cropSize = about.side
    options.imageSize = round(about.side / about.crop_share)
    for message in opts.unfitting(options):
        raise Refused(message)


def _settle_by_images(options: Options, run: Run, count: int) -> None:
    """Settle what the number of training images decides. Raises Refused."""
    run.chosen = opts.settle_by_images(options, min(count, options.limit or count))
    run.options = replace(run.options, epochs=options.nEpochs)
    run.report.options = options.recorded()
    if options.hook and run.ranks.first:
        about = {"folder": str(run.folder), "options": options.recorded()}
        run.hook = hook.load(options.hook, about)


Side = tuple[Images, Pipeline, Plan]


def _keeping_loaders(
    options: Options, run: Run, *sides: Side
) -> tuple[KeptLoader | ResidentLoader, KeptLoader | ResidentLoader]:
    """Return loaders of images that are decoded once, here. Raises Refused."""
    scalings = [pipeline.scaling(options.decodedSize) for _, pipeline, _ in sides]
    files = [images for images, _, _ in sides if isinstance(images, FileImages)]
    if len(files) < len(sides):
        raise Refused(f"{sides[0][0].where} holds arrays of pixels", limit="decoded arrays")
    where, on_gpu = files[0].where, options.decoded == "device"
    needed = 0
    for images, scaling, (_, _, plan) in zip(files, scalings, sides, strict=True):
        needed += decode_once.estimate(images, scaling) * len(plan.pool) // max(1, len(images))
    if on_gpu:
        _refuse_resident(run.step.device, needed, where)
    if options.decoded != "disk" and not run.ranks.local:
        decode_once.refuse_memory(needed, where)

    loaders: list[KeptLoader | ResidentLoader] = []
    skip, device = options.badImages == "skip", run.step.device
    names = "training", "test"
    for name, images, scaling, (_, pipeline, plan) in zip(
        names, files, scalings, sides, strict=True
    ):
        kept = _kept(options, run, images, scaling, plan.pool, name)
        if on_gpu:
            loaders.append(ResidentLoader(kept, pipeline, plan, device, skip=skip))
            # The other ranks have taken theirs too.
            run.ranks.agree(0)
            kept.release()
        else:
            threads = options.nThreads
            loaders.append(KeptLoader(kept, pipeline, plan, device, threads=threads, skip=skip))
    return loaders[0], loaders[1]


def _refuse_resident(device: torch.device, needed: int, where: str) -> None:
    """Raise Refused where pixels cannot stay on the GPU."""
    if device.type != "cuda":
        raise Refused(f"--decoded device: this run is on the {device.type}", limit="decoded GPU")
    free, _ = torch.cuda.mem_get_info(device)
    if not decode_once.fits(needed, free):
        takes = f"the decoded pixels of {where} take about {gigabytes(needed)}"
        there = f"of the GPU's memory {gigabytes(free)} are free"
        raise Refused(f"{takes}, {there}", limit="decoded GPU")


def _kept(
    options: Options,
    run: Run,
    images: FileImages,
    scaling: Scaling,
    pool: np.ndarray,
    name: str,
) -> Kept:
    """Return the pixels of one side's images, decoded now where they were not before; says so.

    Raises Refused, Failed.
    """
    started, ranks = time.perf_counter(), run.ranks
    threads, skip = max(1, options.nThreads), options.badImages == "skip"
    kept, place = None, Place(0, 0, 0)
    # Ranks of one machine share what its first one decodes.
    with ranks.in_turn(f"pixels {name}"):
        if options.decoded == "disk":
            parent = Path(options.decodedDir or Path(options.expDir, options.dataset))
            kept = PixelFolder(images, scaling, pool, parent, threads=threads, skip=skip).keep()
        elif not ranks.local:
            kept, place = decode_once.in_memory(images, scaling, pool, threads=threads, skip=skip)
    told = ranks.told_by_local_first(place.process, place.pixels, place.index)
    if kept is None:
        kept = decode_once.attach(images, scaling, Place(*told))
    if options.decoded != "disk":
        # Once the ranks beside this one have it, it is held by its maps alone.
        ranks.agree(0)
        place.close()

    now, seconds = int(kept.made_now.sum()), time.perf_counter() - started
    how = f"{gigabytes(kept.nbytes)} on {options.decoded}, {now} decoded now in {seconds:.1f} s"
    run.console.say(f"decoded   {len(pool)} {name} images: {how}")
    return kept


def make_tested_loader(options: Options, run: Run, classes: Sequence[str] | None) -> AnyLoader:
    """Return the loader of a test alone. classes: as of `open_tested`. Raises Refused."""
    with run.ranks.in_turn("data"):
        images = open_tested(options, classes)
    return _make_test_loader(options, run, images)


def _make_test_loader(options: Options, run: Run, images: Images) -> AnyLoader:
    plan = _test_plan(options, run, images)
    return _make_loader(options, run, images, make_test_pipeline(options), plan)


def _test_plan(options: Options, run: Run, images: Images) -> Plan:
    ranks = run.ranks
    return Plan(
        len(images), options.batchSize, limit=options.limit, rank=ranks.rank, world=ranks.world
    )


def _make_loader(
    options: Options, run: Run, images: Images, pipeline: Pipeline, plan: Plan
) -> AnyLoader:
    settings: dict[str, Any] = {
        "workers": options.nThreads,
        "start_method": options.startMethod,
        "timeout": options.timeout,
        "skip": options.badImages == "skip",
    }
    loader = data.make_loader(images, pipeline, plan, run.step.device, **settings)
    # Several ranks stop at one step together, which the loop agrees on.
    if isinstance(loader, FileLoader) and run.ranks.world == 1:
        loader.deaths.stop_asked = lambda: run.signals.stop is not None
    return loader


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


def make_pipeline(options: Options, steps: list[augmentation.Step], **views: bool) -> Pipeline:
    """Return the pipeline of one pass. views: of testing. Raises Refused."""
    sizes, seed = (options.imageSize, options.cropSize), options.manualSeed
    try:
        return Pipeline(
            steps,
            *sizes,
            seed=seed,
            interpolation=options.interpolation,
            fit=options.fit,
            **views,
        )
    except ValueError as error:
        raise Refused(f"--augment: {error}") from None


def make_test_pipeline(options: Options) -> Pipeline:
    """Return the pipeline of testing, which has no steps: what is random must not touch a
    figure.
    """
    return make_pipeline(options, [], ten=options.tenCrop, mirrored=options.flipTest)


def statistics(
    options: Options, images: Images, loader: AnyLoader | None = None
) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over the first images of a keyed order;
    cached.

    loader: of the images, whose pixels are taken where it keeps them.
    """
    ours = utils.load_ours("statistics")
    where = f"{images.where} {options.synthetic}"
    if Path(images.where).exists():
        where = str(Path(images.where).resolve())
    sizes = {"imageSize": options.imageSize, "cropSize": options.cropSize}
    plan, cpu = Plan(len(images), 256, limit=SAMPLE), torch.device("cpu")
    # Another folder, count or size must not find these values, nor files that were replaced.
    known = {"where": where, "images": len(images), **sizes}
    if isinstance(images, FileImages):
        sampled = np.concatenate(list(plan.epoch(0)))
        known |= {"files": files_key(images, sampled), "exif": options.exif}
        known |= {"interpolation": options.interpolation}
    if options.fit != "crop":
        known |= {"fit": options.fit}
    keeping = loader if isinstance(loader, KeptLoader | ResidentLoader) else None
    if keeping is not None and len(keeping.plan.pool) < len(images):
        # Only what --limit leaves was decoded.
        keeping = None
    if keeping is not None:
        known |= {"decodedSize": options.decodedSize}
    cache_key = json.dumps(known)

    def compute() -> tuple[list[float], list[float]]:
        pipeline, skip = make_pipeline(options, []), options.badImages == "skip"
        source: AnyLoader
        if keeping is not None:
            source = keeping.again(pipeline, plan)
        else:
            workers = options.nThreads
            source = data.make_loader(images, pipeline, plan, cpu, workers=workers, skip=skip)
        title = "mean and deviation"
        bar = tqdm(source.epoch(0), title, len(source), unit="batch", leave=False, disable=None)
        return ours.measure(batch.images for batch in bar)

    path = Path(options.expDir, options.dataset, "statistics.json")
    return ours.cached(str(path), cache_key, compute)


def make_network(options: Options, run: Run, loader: AnyLoader) -> Network:
    """Return the network on the run's device, with its weights where a file brings them.

    Raises Refused.
    """
    # Names for people are kept with the weights, where predict.py finds them.
    images = loader.images
    shown = display_names(images)
    network = model.build(_spec(options, images, tuple(shown) if shown != images.classes else ()))
    if options.netType not in OURS:
        model.refuse_size(network)
    if options.syncBN and run.ranks.world > 1:
        synchronise(network, run.step.device)
    if options.freeze:
        model.freeze(network, options.freeze)
    if run.saved is not None:
        _refuse_other(network.spec, run.saved)
    else:
        _initialise(options, run, network, loader)
    if options.optimize and not recompute(network):
        run.console.say(f"--optimize changes nothing: {options.netType} repeats no blocks")
    with room_for("the network", run.step.device):
        return network.to(run.step.device).to(memory_format=torch.channels_last)


def _spec(options: Options, images: Images, display_names: tuple[str, ...]) -> Spec:
    """Return what the network of these options is, for these classes."""
    return Spec(
        options.netType,
        tuple(images.classes),
        options.imageSize,
        options.cropSize,
        options.stem,
        options.interpolation,
        options.exif,
        display_names,
        options.fit,
    )


def _initialise(options: Options, run: Run, network: Network, loader: AnyLoader) -> None:
    """Fill the network from a file of weights; without one measure mean and deviation of the
    images.
    """
    path = weights_path(options, run)
    if not path:
        with run.ranks.in_turn("statistics"):
            network.normalise.set(*statistics(options, loader.images, loader))
        return

    value = weights.read(path)
    fresh = model.load_weights(network, value, path)
    run.console.say(_describe_weights(network, path, model.spec_of(value, path), fresh))


def weights_path(options: Options, run: Run) -> str | None:
    """Return the file of weights that is asked for, None for none. Raises Refused."""
    if not options.pretrained:
        return options.retrain
    with run.ranks.in_turn("weights"):
        return model.published_weights(options.netType)


def _describe_weights(network: Network, path: str, spec: Spec | None, fresh: list[str]) -> str:
    """Say what of a file is kept, and what begins at random."""
    count = len(network.state_dict())
    kept = f"{count - len(fresh)} of {count} tensors kept, with mean and deviation"
    text = f"weights   {path}: {kept}"
    if fresh:
        return f"{text}; at random: {', '.join(fresh)}"
    if spec is not None and spec.classes != network.spec.classes:
        was, now = listed(list(spec.classes), 3), listed(list(network.spec.classes), 3)
        text += f"; also the last layer, though it was trained for {was} and not for {now}"
    return text


def settle_tested(options: Options) -> tuple[Plain, Spec | None]:
    """Take what was not given of a test from the weights, as predict.py does: network and stem,
    sizes, interpolation, EXIF.

    Returns the file's content and what it says, (None, None) for published weights. Raises Refused.
    """
    if options.retrain is None:
        return None, None
    value = weights.read(options.retrain)
    spec = model.spec_of(value, options.retrain)
    if spec is not None:
        for field, name in TESTED_BY.items():
            if name not in options.given:
                setattr(options, name, getattr(spec, field))
        # A test has a folder of its own, called after the network.
        if "expID" not in options.given:
            options.expID = f"{options.usual_name}-test"
        for message in opts.unfitting(options):
            raise Refused(message)
    return value, spec


def make_tested_network(
    options: Options, run: Run, images: Images, value: Plain, spec: Spec | None
) -> Network:
    """Return the network of a test alone, with all of its weights from the file. Raises Refused."""
    path = weights_path(options, run)
    assert path is not None
    shown = spec.display_names if spec is not None else ()
    network = model.build(_spec(options, images, shown))
    fresh = model.load_weights(network, weights.read(path) if value is None else value, path)
    if missing := model.without_heads(network, fresh):
        classes = f"{images.where} has {len(images.classes)} classes"
        raise Refused(
            f"{path} was made for another number of classes: {classes}, and {', '.join(missing)} "
            "would be random: name the images that it was made for"
        )
    with room_for("the network", run.step.device):
        return network.to(run.step.device).to(memory_format=torch.channels_last)


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
            gone, new = sorted({*was} - {*now}), sorted({*now} - {*was})
            was = f"{len(was)}, with {listed(gone)}" if gone else f"{len(was)}"
            now = f"{len(now)}, with {listed(new)}" if new else f"{len(now)}"
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


def memory_to_test(options: Options, run: Run, network: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which too large a batch of testing is one line with what fits."""
    trial = memory.test_trial(run.step, options.cropSize, network)
    return memory.enough_memory(run.step, options.batchSize, trial, testing=True)


def schedule_of(options: Options) -> Schedule:
    """Return the run's learning rate and weight decay."""
    entry = NETWORKS[options.netType]
    first, decay = entry.lr, options.weightDecay
    if options.schedule == "onecycle" and entry.peak is not None:
        first = entry.peak

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


def show_range(options: Options, run: Run, found: RangeTest) -> None:
    """Say which learning rate a range test suggests; draw it and write its steps down."""
    if not run.ranks.first:
        return
    names = "learning_rate", "loss", "smoothed"
    columns = zip(found.rates, found.losses, found.smoothed, strict=True)
    rows = [[f"{value:.6g}" for value in row] for row in columns]
    written, drawn = run.folder / "findLR.csv", run.folder / "findLR.png"
    write_rows(written, list(names), rows)
    # Of an earlier test, where this one draws none.
    drawn.unlink(missing_ok=True)
    run.report.draw_range(found)
    shown = drawn if drawn.exists() else written
    count = f"{len(found.rates)} steps up to a learning rate of {found.rates[-1]:.3g}"
    if found.suggestion is None:
        run.console.say(f"{count}: the loss never fell; see {shown}")
        return
    way = f"--LR {found.suggestion:g} --schedule {options.schedule}"
    run.console.say(f"{count}: give {way}; see {shown}")


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


def resume(
    options: Options,
    run: Run,
    network: Network,
    updater: Updater,
    train: AnyLoader,
    test: AnyLoader,
) -> Progress:
    """Fill the run from its checkpoint, if it has one, and write down what it is."""
    # An option that no bit depends on does not break exactness when it changes.
    changed = {name: pair for name, pair in options.changed.items() if name not in FREE}
    if set(changed.get("decoded", ())) == {"ram", "disk"}:
        del changed["decoded"]
    # What it means now and then is compared with the rest of what the bits depend on.
    if run.saved is not None and "precision" in run.saved.settings:
        changed.pop("precision", None)
    sides: changes.Sides = {"train": train.images, "test": test.images}
    run.images = changes.fingerprints(sides)
    before = run.saved.images if run.saved is not None else {}
    kept = run.folder / "images.npz"
    changed_images = []
    # Only the first rank tells.
    if before and run.ranks.first:
        changed_images = changes.differences(before, run.images, kept, sides)
    other = bool(before) and before["train"]["listing"] != run.images["train"]["listing"]
    relisted = bool(run.ranks.agree(int(other))[0])
    progress = run.resume(
        changed,
        network,
        updater,
        images=changed_images,
        relisted=relisted,
        wanted=options.continue_,
    )
    if run.ranks.first:
        split = None
        if options.valShare is not None:
            split = functools.partial(_write_split, options, train.images, test.images)
        run.record = functools.partial(
            folder.record,
            options=options.recorded(),
            environment=run.environment,
            images=run.images,
            split=split,
        )
        run.record(run.folder)
        changes.save(kept, sides, run.images)
    return progress


def _write_split(options: Options, train: Images, test: Images, path: Path) -> None:
    """Write the split as a table, which --dataset table reads."""
    assert isinstance(train, FileImages)
    assert isinstance(test, FileImages)
    root = options.data_dir or os.path.dirname(options.labels or "")
    table.write(path, {"train": train, "test": test}, root, escapes=True)


def print_header(
    options: Options, run: Run, network: Network, train: AnyLoader, test: AnyLoader
) -> None:
    """Say what is about to be trained, on what and where."""
    run.report.classes = display_names(train.images)
    _hide_top5(run, train.images)
    if run.console.quiet:
        return
    lines = {
        "data": _describe_data(options, train, test),
        **_describe_files(options, [train.images, test.images]),
        **_describe_keeping(options, run, train, test),
        "pixels": f"{_describe_sizes(options)}, {options.augment}",
        "network": _describe_network(network),
        "training": _describe_training(options, run, len(train)),
        "device": _describe_device(options, run, train),
        "folder": f"{run.folder}",
    }
    if not (options.test or options.findLR):
        lines["folder"] += f"; resume with: {run.options.resume_command}"
        lines |= _describe_disk(options, network)
    run.report.about = _about(options, run, lines)
    run.console.say("\n".join(f"{name:<10}{text}" for name, text in lines.items()))


def _about(options: Options, run: Run, header: dict[str, str]) -> About:
    """Return what report.html says of the run."""
    name = f"{options.netType} on {options.dataset}: {run.folder.name}"
    if options.test:
        return About(name, header, opts.differing(options))
    best = shlex.quote(str((run.folder / "best.pt").absolute()))
    commands = [
        (f"python predict.py {best} photo.jpg", "names and probabilities of images"),
        (run.options.resume_command, "train on, after raising --nEpochs"),
        (f"python export.py {best} --to onnx out.onnx", "for other programs"),
    ]
    if options.dataset in FOLDERS and options.data_dir and os.path.isdir(options.data_dir):
        train = shlex.quote(os.path.join(options.data_dir, "train"))
        way = f"python predict.py {best} {train} --mistakes wrong.csv --sheet wrong.png"
        commands.insert(1, (way, "which training images may have a wrong label"))
    return About(name, header, opts.differing(options), commands)


def _describe_disk(options: Options, network: Network) -> dict[str, str]:
    """Return what a header says of the files that a run will hold, where they are large."""
    weights = sum(value.nbytes for value in network.state_dict().values())
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    slots = {"sgd": bool(options.momentum), "adamw": 2}[options.optimizer]
    held = weights + int(slots) * trained + (weights if options.ema else 0)
    every = abs(options.snapshot)
    # best.pt, and one at the end in any case.
    files = 2 if options.snapshot <= 0 else 1 + -(-options.nEpochs // every)
    total = options.keep * held + files * weights
    if total < LARGE:
        return {}
    sizes = f"{options.keep} checkpoints of {gigabytes(held)}, {files} files of weights"
    return {"disk": f"{gigabytes(total)} in the end: {sizes} of {gigabytes(weights)}"}


def _describe_sizes(options: Options) -> str:
    fit = "" if options.fit == "crop" else f", {options.fit}"
    return f"{options.imageSize} -> {options.cropSize}{fit}"


def _hide_top5(run: Run, images: Images) -> None:
    """Leave out of the console what is 100 % of five classes or fewer."""
    if len(images.classes) < 6:
        run.console.hidden = {"test_top5"}


def print_test_header(options: Options, run: Run, network: Network, loader: AnyLoader) -> None:
    """Say what is about to be tested, on what and where."""
    _hide_top5(run, loader.images)
    if run.console.quiet:
        return
    images = loader.images
    count = f"{loader.plan.image_count} of {len(images)} test images"
    crops = ", ten crops" if options.tenCrop else ""
    crops = ", with mirror images" if options.flipTest else crops
    lines = {
        "data": f"{options.dataset}: {count} in {images.where}; {len(images.classes)} classes",
        **_describe_files(options, [images]),
        "pixels": f"{_describe_sizes(options)}, {options.interpolation}{crops}",
        "network": _describe_network(network),
        "weights": options.retrain or "torchvision's, as published",
        "device": _describe_device(options, run, loader),
        "folder": f"{run.folder}",
    }
    run.report.about = _about(options, run, lines)
    run.console.say("\n".join(f"{name:<10}{text}" for name, text in lines.items()))


def _describe_files(options: Options, sides: Sequence[Images]) -> dict[str, str]:
    """Return what a header says of image files: what is not read, and how many carry a turn."""
    lines: dict[str, str] = {}
    files = [images for images in sides if isinstance(images, FileImages)]
    left_out: Counter[str] = Counter()
    # Both sides of a split were listed as one.
    for images in files[:1] if options.valShare is not None else files:
        left_out.update(images.left_out)
    if left_out:
        lines["left out"] = told(left_out).removeprefix("; left out: ")
    on_disk = options.dataset in FOLDERS and not options.storage
    if options.data_dir and files and on_disk and os.path.isdir(options.data_dir):
        tested = "other" if options.part == "test" else "test"
        alone = [f"{name}/" for name in folders.left_alone(options.data_dir, tested)]
        if alone:
            lines["beside"] = f"{listed(alone)}: images that are not read"
    for images in files[:1]:
        if images.packed is not None and (remark := images.packed.remark()):
            lines["reading"] = remark
    looked_at, carrying = turns(files)
    if carrying:
        what = "followed" if options.exif == "apply" else "ignored: --exif apply turns them"
        lines["exif"] = f"{carrying} of {looked_at} files looked at carry a turn, {what}"
    return lines


def _describe_keeping(
    options: Options, run: Run, train: AnyLoader, test: AnyLoader
) -> dict[str, str]:
    """Return what a header says of decoding once, where that is not done."""
    needed = 0
    for loader in (train, test):
        if not isinstance(loader, FileLoader):
            return {}
        scaling = loader.pipeline.scaling(options.decodedSize)
        needed += decode_once.estimate(loader.images, scaling, HEADERS)
    free = free_memory()
    if not needed or free is None:
        return {}
    takes = f"would keep all pixels, about {gigabytes(needed)}"
    if decode_once.fits(needed, free):
        run.watch.keeping = f"--decoded ram {takes}"
        return {
            "decoding": f"in each epoch; --decoded ram {takes} of {gigabytes(free)} free memory"
        }
    run.watch.keeping = f"--decoded disk {takes}"
    return {"decoding": f"in each epoch; --decoded disk {takes}"}


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
    if run.chosen:
        batch += f" ({' and '.join(run.chosen)} by the number of images)"
    return f"{epochs}, {batch}; {options.optimizer}, {rate}, not scaled with the batch{average}"


def _describe_device(options: Options, run: Run, train: AnyLoader) -> str:
    precision = run.environment["precision"]
    if options.precision == "auto":
        has_it = utils.has_bf16(run.step.device)
        reason = "it has bf16 arithmetic" if has_it else "it has no bf16 arithmetic"
        began = precision != ("bf16" if has_it else "fp32")
        precision += f" (as this run began; {reason})" if began else f" ({reason})"
    threads = f"{run.ranks.world} x {run.environment['threads']} threads"
    workers = f", {options.nThreads} workers" if isinstance(train, FileLoader) else ""
    if isinstance(train, KeptLoader):
        workers = f", {options.nThreads} threads that read"
    together = ""
    if options.gpus > 1:
        together = f", {options.gpus} GPUs by DataParallel (--parallel ranks is faster)"
    absent = options.GPU is None and run.step.device.type == "cpu"
    device = f"{run.environment['device']}{', no GPU found' if absent else ''}"
    return f"{device}, {precision}, {threads}{workers}{together}"
