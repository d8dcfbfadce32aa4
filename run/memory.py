"""Too little memory: how many images fit."""

import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch import nn

import utils
from base.errors import Failed
from training.metrics import Criterion
from training.step import Step

ALLOCATOR_WORDS = (
    "not enough memory",
    "can't allocate",
)  # of the CPU's allocator, which raises RuntimeError


@contextlib.contextmanager
def enough_memory(
    step: Step, batch_size: int, crop_size: int, network: nn.Module, criterion: Criterion
) -> Iterator[None]:
    """Turn a lack of memory into how many images fit.

    batch_size: over all ranks; crop_size: pixels. Raises Failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_lack_of_memory(error):
            raise
        # The frames hold what filled the memory.
        traceback.clear_frames(error.__traceback__)
        utils.free_memory()
    else:
        return

    size = -(-batch_size // (step.ranks.world * step.accumulate))
    fits = 0
    # From small to large: after a failure oneDNN may refuse any size at all.
    while 2 * fits < size and _fits(step, crop_size, network, criterion, max(1, 2 * fits)):
        fits = max(1, 2 * fits)
    message = f"a batch of {batch_size} images needs more memory than {step.device} has"
    if not fits:
        raise Failed(message, limit="batch memory")
    parts = step.accumulate * -(-size // fits)
    raise Failed(f"{message}; {fits} images at once fit: --accumulate {parts} keeps the batch")


def _is_lack_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(word in str(error) for word in ALLOCATOR_WORDS)


def _fits(step: Step, crop_size: int, network: nn.Module, criterion: Criterion, count: int) -> bool:
    """Try whether a forward and backward pass of so many images finds memory."""
    shape = (count, 3, crop_size, crop_size)
    images = torch.zeros(shape, dtype=torch.uint8, device=step.device)
    labels = torch.zeros(count, dtype=torch.int64, device=step.device)
    body = network
    if isinstance(network, nn.parallel.DistributedDataParallel):
        body = network.module
    try:
        with step.autocast():
            heads = body(images, heads=True)
        criterion(heads, labels).backward()
        return True
    except RuntimeError as error:
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        body.zero_grad(set_to_none=True)
        utils.free_memory()
