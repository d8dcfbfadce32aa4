"""What a run says of itself before it begins."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence

import numpy as np

import model
import utils
from assembly.training import schedule_of
from base.machine import free_memory
from base.text import listed, printable
from data import AnyLoader, FileLoader, Images, KeptLoader
from datasets import folder as folders
from datasets.images import HEADERS, FileImages, display_names, turns
from datasets.listing import told
from loading import decode_once
from loading.decode_once import gigabytes
from model import Network
from options.settle import differing
from options.table import FOLDERS, Options
from report.page import About
from run.run import Run

# Bytes of a run's files from which on a header says so.
LARGE = 10**9


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
        return About(name, header, differing(options))
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
    return About(name, header, differing(options), commands)


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
