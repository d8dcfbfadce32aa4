"""What happens to pixels before the network: the pipelines, and mean and deviation of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import augmentation
import data
import utils
from base.errors import Refused
from data import AnyLoader, Images, KeptLoader, ResidentLoader
from datasets.images import FileImages, files_key
from loading.plan import Plan
from options.table import Options
from transforms import Pipeline

# Images that mean and standard deviation are taken from.
SAMPLE = 10_000


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
    metric.
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
            settings: dict[str, Any] = {"workers": options.nThreads, "skip": skip}
            settings |= {"start_method": options.startMethod, "timeout": options.timeout}
            source = data.make_loader(images, pipeline, plan, cpu, **settings)
        title = "mean and deviation"
        bar = tqdm(source.epoch(0), title, len(source), unit="batch", leave=False, disable=None)
        return ours.measure(batch.images for batch in bar)

    path = Path(options.expDir, options.dataset, "statistics.json")
    return ours.cached(str(path), cache_key, compute)
