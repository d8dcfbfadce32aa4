"""One GPU or many, or the CPU: the device, copies to the host, memory, seeds."""

import contextlib
import ctypes
import importlib.util
import resource
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from base.errors import Refused
from base.randomness import key

# glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def load_ours(name: str) -> ModuleType:
    """Load a file of this folder by its path: `statistics` is the standard library's too."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_our_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class AsyncCopy:
    """A tensor's copy on its way to the host; making it does not wait."""

    def __init__(self, values: Tensor) -> None:
        self.host, self.event = values, None
        if values.is_cuda:
            host = torch.empty_like(values, device="cpu", pin_memory=True)
            self.host = host.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    def take(self) -> list[float]:
        """Return the values, waiting for them if need be."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


def device_for(first_gpu: int | None, count: int, local_rank: int = 0) -> torch.device:
    """Return the device of a run. Raises Refused where fewer than `count` GPUs are there.

    first_gpu: from 0, -1 for the CPU, None for a GPU where there is one; local_rank: this rank's
    number on its machine: each rank takes the next GPU.
    """
    available = torch.cuda.device_count()
    if first_gpu == -1 and count > 1:
        raise Refused(
            f"{count} GPUs were asked for and the CPU, which is one device", limit="one CPU"
        )
    if first_gpu == -1 or (first_gpu is None and available == 0 and count == 1):
        if first_gpu is None:
            print("no GPU found: training on the CPU", flush=True)
        return torch.device("cpu")

    first = (first_gpu or 0) + local_rank
    if first + count > available:
        wanted = f"GPU {first}" if count == 1 else f"GPUs {first} to {first + count - 1}"
        raise Refused(f"there is no {wanted}: this machine has {available} GPUs", limit="GPUs")
    return torch.device("cuda", first)


def spread(network: nn.Module, device: torch.device, gpus: int) -> nn.Module:
    """Return the network as one process trains it: over `gpus` GPUs from `device` on with
    DataParallel, or as it is.
    """
    if gpus == 1:
        return network
    first = device.index or 0
    return nn.DataParallel(network, device_ids=list(range(first, first + gpus)))


def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of handing it back and asking again at each step.

    Fresh pages are zeroed and mapped one by one: a batch of CIFAR took 4.8 ms with that and 2.1 ms
    without.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory() -> None:
    """Hand freed memory back, on the host and on the GPU, and do so from now on."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        library.malloc_trim(0)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use so far: on the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reseed(device: torch.device, *parts: int | str) -> None:
    """Seed what dropout draws from.

    The default generators' own method costs 1 us, torch.manual_seed 200.
    """
    number = key(*parts) >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.default_generators[index].manual_seed(number)
