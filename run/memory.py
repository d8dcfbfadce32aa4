"""Too little memory: how many images fit."""

import contextlib
import gc
import mmap
import resource
import traceback
from collections.abc import Callable, Iterator

import torch
from torch import nn

import utils
from base.errors import Failed
from training.batchnorm import SyncBatchNorm
from training.metrics import Criterion
from training.step import Step

# Of the CPU's allocator and of CUDA's libraries, which raise RuntimeError.
ALLOCATOR_WORDS = ("not enough memory", "can't allocate", "ALLOC_FAILED", "out of memory")
# Of addresses, kept for the trials under a limit of addresses (ulimit -v): what a failed step freed
# stays with the heap in pieces, and oneDNN maps pages for its code.
RESERVE = 64 << 20
# Batch norms over all ranks.
SYNCHRONISED = (nn.SyncBatchNorm, SyncBatchNorm)
# Does for so many images what ran out of memory.
Trial = Callable[[int], None]


@contextlib.contextmanager
def enough_memory(
    step: Step, batch_size: int, trial: Trial | None, *, least: int = 1, testing: bool = False
) -> Iterator[None]:
    """Turn a lack of memory into how many images fit. Raises Failed.

    batch_size: over all ranks; trial: None where nothing can be tried; least: images that can be
    tried at all, 2 with batch norm; testing: it is no training step, which could be done in parts.
    """
    try:
        with _reserved_addresses():
            yield
    except RuntimeError as error:
        if not _is_lack_of_memory(error):
            raise
        # The frames hold what filled the memory.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        utils.free_memory()
    else:
        return

    parts = 1 if testing else step.accumulate
    size = -(-batch_size // (step.ranks.world * parts))
    fits, count = 0, least
    doing = "testing" if testing else "training on"
    message = f"{doing} {batch_size} images at once needs more memory than {step.device} has"
    if trial is None:
        raise Failed(message, limit="batch memory")

    # From small to large: after a failure oneDNN may refuse any size at all.
    while count < size and _fits(trial, count):
        fits, count = count, 2 * count
    if not fits:
        raise Failed(message, limit="batch memory")
    way = f"--batchSize {fits * step.ranks.world}"
    if not testing:
        way = f"--accumulate {parts * -(-size // fits)} keeps the batch"
    raise Failed(f"{message}; {fits} images at once fit: {way}")


@contextlib.contextmanager
def _reserved_addresses() -> Iterator[None]:
    """Hold RESERVE bytes of addresses, no memory, where this process's addresses are limited."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        yield
        return
    with contextlib.ExitStack() as held:
        # As good as full: the step itself will say so.
        with contextlib.suppress(OSError):
            held.enter_context(mmap.mmap(-1, RESERVE, prot=0))
        yield


@contextlib.contextmanager
def room_for(what: str, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory for something that no batch size changes into one line.

    Raises Failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_lack_of_memory(error):
            raise
        full = f"{what} needs more memory than {device} has free"
        raise Failed(
            f"{full}: choose a smaller network, or a device that nothing else uses"
        ) from None


def _is_lack_of_memory(error: RuntimeError) -> bool:
    # Says what it is, a lost worker too.
    if isinstance(error, Failed):
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(word in str(error) for word in ALLOCATOR_WORDS)


def _fits(trial: Trial, count: int) -> bool:
    # After memory ran out once, libraries say so in words of their own: any error is that here.
    try:
        trial(count)
    except RuntimeError as error:
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        utils.free_memory()
    return True


def train_trial(
    step: Step, crop_size: int, network: nn.Module, criterion: Criterion
) -> Trial | None:
    """Return what does a forward and backward pass, None where it would wait for other ranks.

    crop_size: pixels.
    """
    # The other ranks may have had memory enough, and are at another collective.
    if any(isinstance(module, SYNCHRONISED) for module in network.modules()):
        return None
    body = network
    if isinstance(network, nn.parallel.DistributedDataParallel):
        body = network.module

    def trial(count: int) -> None:
        images, labels = _images(step, crop_size, count)
        try:
            with step.autocast():
                heads = body(images, heads=True)
            criterion(heads, labels).backward()
        finally:
            body.zero_grad(set_to_none=True)

    return trial


def test_trial(step: Step, crop_size: int, network: nn.Module) -> Trial:
    """Return what does a forward pass of testing."""

    def trial(count: int) -> None:
        images, _ = _images(step, crop_size, count)
        with torch.no_grad(), step.autocast():
            network(images).float().log_softmax(1)

    return trial


def _images(step: Step, crop_size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (count, 3, crop_size, crop_size)
    images = torch.zeros(shape, dtype=torch.uint8, device=step.device)
    return images, torch.zeros(count, dtype=torch.int64, device=step.device)
