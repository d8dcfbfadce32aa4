"""From options to what trains the network: loss, optimizer, schedule, precision, GPUs and ranks, and what fits memory."""

import contextlib
import traceback
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import utils
from datasets.images import ArrayImages, FileImages
from metrics import Criterion
from model import Network
from models import NETWORKS
from optimizer import Updater, optimizer
from opts import Options
from ranks import wrap
from run import Run
from schedule import Schedule, schedule
from utils import Failed, Refused


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


@contextlib.contextmanager
def enough_memory(options: Options, run: Run, network: nn.Module, criterion: Criterion) -> Iterator[None]:
    """Turn a lack of memory into how many images fit. Raises Failed."""
    try:
        yield
    except RuntimeError as error:
        words = ("not enough memory", "can't allocate")  # of the CPU's allocator
        if not (isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold what filled the memory
        utils.free_memory()
    else:
        return
    size = -(-options.batchSize // (run.ranks.world * options.accumulate))
    fits = 0
    # From small to large: after a failure oneDNN may refuse any size at all.
    while 2 * fits < size and _fits(options, run, network, criterion, max(1, 2 * fits)):
        fits = max(1, 2 * fits)
    way = "lower it, or raise --accumulate"
    if fits:
        way = f"{fits} images at once fit: --accumulate {options.accumulate * -(-size // fits)} keeps the batch"
    raise Failed(f"--batchSize {options.batchSize} needs more memory than {run.device} has; {way}")


def _fits(options: Options, run: Run, network: nn.Module, criterion: Criterion, count: int) -> bool:
    """Try whether a forward and backward pass of so many images finds memory."""
    images = torch.zeros(count, 3, options.cropSize, options.cropSize, dtype=torch.uint8, device=run.device)
    body = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    try:
        with run.autocast():
            heads = body(images, heads=True)
        criterion(heads, torch.zeros(count, dtype=torch.int64, device=run.device)).backward()
        return True
    except RuntimeError as error:
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        body.zero_grad(set_to_none=True)
        utils.free_memory()
