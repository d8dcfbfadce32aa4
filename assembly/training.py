"""What trains a network: optimizer, schedule, loss, several devices, memory."""

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from base.errors import Refused
from base.files import write_rows
from data import Images
from model import Network
from models import NETWORKS
from options.table import Options
from run import memory
from run.memory import room_for
from run.run import Run
from training.compiled import Compiled
from training.lr_range import RangeTest
from training.metrics import Criterion
from training.ranks import make_distributed
from training.replicas import Replicas
from training.schedule import Schedule, make_schedule
from training.updater import Updater, has_batch_norm, make_optimizer


def make_updater(options: Options, run: Run, network: Network) -> Updater:
    """Return what updates the network's weights.

    Raises Refused where batch norm would see single images.
    """
    share = options.batchSize // run.ranks.world
    if has_batch_norm(network) and share // min(options.accumulate, share) < 2:
        parts, more = "", ""
        if options.accumulate > 1:
            parts, more = f" in {options.accumulate} parts", ", or lower --accumulate"
        needs = "which needs at least 2 images on each rank and in each part"
        raise Refused(
            f"--batchSize {options.batchSize}{parts}: {options.netType} has batch norm, {needs}: "
            f"raise it{more}"
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
    if options.schedule == "onecycle":
        first = options.peak or entry.highest_rate

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
        if options.accumulate > 1:
            # The next part's replay writes over the gradients that the one before left.
            raise Refused(
                "--compile makes a step one graph, --accumulate parts: give --accumulate 1"
            )
        trained = Compiled(network)
    elif options.compile:
        trained = torch.compile(network)  # type: ignore[assignment]

    if options.gpus > 1:
        first = run.step.device.index or 0
        least = 2 if has_batch_norm(network) else 1
        trained = Replicas(trained, list(range(first, first + options.gpus)), least)

    return make_distributed(trained, run.ranks, run.step.device)
