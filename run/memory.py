"""Too little memory: how many images fit."""

import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch import nn

import utils
from base.errors import Failed
from run.run import Run
from training.metrics import Criterion


@contextlib.contextmanager
def enough_memory(run: Run, batch_size: int, crop_size: int, network: nn.Module, criterion: Criterion) -> Iterator[None]:
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
    size = -(-batch_size // (run.ranks.world * run.accumulate))
    fits = 0
    # From small to large: after a failure oneDNN may refuse any size at all.
    while 2 * fits < size and _fits(run, crop_size, network, criterion, max(1, 2 * fits)):
        fits = max(1, 2 * fits)
    way = "lower it, or raise --accumulate"
    if fits:
        way = f"{fits} images at once fit: --accumulate {run.accumulate * -(-size // fits)} keeps the batch"
    raise Failed(f"--batchSize {batch_size} needs more memory than {run.device} has; {way}")


def _fits(run: Run, crop_size: int, network: nn.Module, criterion: Criterion, count: int) -> bool:
    """Try whether a forward and backward pass of so many images finds memory."""
    images = torch.zeros(count, 3, crop_size, crop_size, dtype=torch.uint8, device=run.device)
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
