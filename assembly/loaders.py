"""The loaders of a run: which images make up a batch, and who reads them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data
import model
from assembly.images import open_both, open_tested
from assembly.pipelines import make_pipeline, make_test_pipeline
from base.errors import Refused
from data import AnyLoader, FileLoader, Images, KeptLoader, ResidentLoader
from datasets.decoded import Kept
from datasets.images import FileImages
from loading import decode_once
from loading.decode_once import Place, gigabytes
from loading.pixel_folder import PixelFolder
from loading.plan import BalancedPlan, Plan
from models import TIMM, from_timm
from options.checks import unfitting
from options.settle import settle_by_images
from options.table import FILES, Options
from run import folder, hook
from run.run import Run
from training.updater import has_batch_norm
from transforms import Pipeline, Scaling


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
    # Nothing is cut off where nobody asks for it.
    shows_all = options.fit != "crop"
    options.imageSize = about.side if shows_all else round(about.side / about.crop_share)
    if "decodedSize" not in options.given:
        options.decodedSize = None
    for message in unfitting(options):
        raise Refused(message)


def _settle_by_images(options: Options, run: Run, count: int) -> None:
    """Settle what the number of training images decides. Raises Refused."""
    run.chosen = settle_by_images(options, min(count, options.limit or count))
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
    if classes is None:
        # Weights that say nothing of themselves.
        _settle_sizes(options)
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
        run.console.say(f"the last batch of each epoch would be {few}, too few: it is left out")

    return plan


def _has_batch_norm(options: Options) -> bool:
    """True where the network that will be made norms over the images of one rank."""
    # The seed that the real one is drawn by must not be used up.
    with torch.random.fork_rng(devices=[]):
        return has_batch_norm(model.create(options.netType, 2, options.cropSize))
