"""One GPU or many, or the CPU: the device, copies to it and from it, memory, seeds."""

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import resource
import sys
import time
import weakref
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from base.errors import Refused
from base.randomness import key

# glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

# What the contexts of backward passes hold.
_PASSES: ContextVar[object] = ContextVar("passes", default=None)

# Of torch.cpu.get_capabilities: arithmetic in bf16, on x86 and on Arm. AMX comes with the first.
BF16_FEATURES = ("avx512_bf16", "bf16")


def load_ours(name: str) -> ModuleType:
    """Load a file of this folder by its path: `statistics` is the standard library's too."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_our_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_bf16(device: torch.device) -> bool:
    """True where the device multiplies in bf16 itself, not by way of float32. Nothing is tried."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in BF16_FEATURES)
    return torch.cpu._is_avx512_bf16_supported()


class AsyncCopy:
    """A tensor's copy on its way to the host; making it does not wait."""

    def __init__(self, values: Tensor) -> None:
        self.host, self.event = values, None
        # Pinned memory: a copy to any other waits.
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


class Uploader:
    """Brings a batch to the device. On a GPU by a side stream, beside what is being computed there.

    Small arrays go together in one pinned copy: each copy of its own costs a launch, and one from
    pageable memory waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensor: Tensor) -> Tensor:
        """Return a large host tensor, pinned if it can be, on the device."""
        if self.stream is None:
            return tensor.to(self.device)
        with torch.cuda.stream(self.stream):
            sent = tensor.to(self.device, non_blocking=True)
        return self._ready(sent)

    def pack(self, *arrays: np.ndarray) -> list[Tensor]:
        """Return host arrays on the device, in one copy."""
        tensors = [torch.from_numpy(array) for array in arrays]
        if self.stream is None:
            return [tensor.to(self.device) for tensor in tensors]
        # Every array begins at a multiple of 8 bytes, as views of its type ask for.
        ends = np.cumsum([-(-tensor.nbytes // 8) * 8 for tensor in tensors]).tolist()
        buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
        starts = [0, *ends[:-1]]

        for tensor, start in zip(tensors, starts, strict=True):
            target = buffer[start : start + tensor.nbytes]
            target.copy_(tensor.contiguous().view(-1).view(torch.uint8))

        sent = self.send(buffer)
        return [
            sent[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(tensors, starts, strict=True)
        ]

    def _ready(self, sent: Tensor) -> Tensor:
        """Make what is computed next wait for the copy, and its memory for what is computed."""
        assert self.stream is not None
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        sent.record_stream(current)
        return sent


def device_for(
    first_gpu: int | None, count: int, local_rank: int = 0, ranks_here: int = 1
) -> torch.device:
    """Return the device of a run. Raises Refused where it cannot be had.

    first_gpu: from 0, -1 for the CPU, None for a GPU where there is one; count: GPUs of this
    process; local_rank of ranks_here: this rank among those on its machine, each takes the next
    GPU.
    """
    if first_gpu == -1:
        if count > 1:
            asked = f"{count} GPUs were asked for and the CPU, which is one device"
            raise Refused(asked, limit="one CPU")
        return torch.device("cpu")

    available = _count_gpus()
    if first_gpu is None and available == 0 and count == 1:
        return torch.device("cpu")

    # Ranks of one machine take neighbouring GPUs.
    first = (first_gpu or 0) + local_rank

    # A scheduler that gives each rank a GPU of its own shows it that one alone, as number 0.
    if available == 1 and ranks_here > 1 and first_gpu in (None, 0) and count == 1:
        first = 0
    if first + count > available:
        wanted = f"GPU {first}" if count == 1 else f"GPUs {first} to {first + count - 1}"
        there = "1 GPU" if available == 1 else f"{available} GPUs"
        raise Refused(f"{wanted} cannot be had: this machine has {there}", limit="GPUs")

    return torch.device("cuda", first)


def _count_gpus() -> int:
    """Return the CUDA (or ROCm) devices. Raises Refused where their driver does not fit torch."""
    count = torch.cuda.device_count()
    if count == 0:
        return 0
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Refused(f"the GPU cannot be used: {reason}", limit="GPUs") from None

    return count


class _Held:
    """Lives as long as a pass that holds it."""


@functools.cache
def end_passes_at_exit() -> None:
    """Let no thread of a backward pass on a GPU be cut off as this process ends.

    The main thread has its gradients, or an error of another GPU, before each of torch's threads
    has let go of the pass. One that must for that wait for an interpreter which is ending ended the
    process with SIGABRT, before Python 3.14.
    """
    held = _Held()
    # torch gives each pass a copy of the context that it is called in.
    _PASSES.set(held)
    atexit.register(_end_passes, weakref.ref(held))


def _end_passes(held: "weakref.ref[_Held]") -> None:
    _PASSES.set(None)
    end = time.monotonic() + 1
    while held() is not None and time.monotonic() < end:
        time.sleep(0.001)


def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of handing it back and asking again at each step.

    Fresh pages are zeroed and mapped one by one: a batch of CIFAR took 4.8 ms with that and 2.1 ms
    without.
    """
    # Another C library.
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory() -> None:
    """Hand freed memory back, on the host and on the GPU.

    The host's addresses stay with the heap, which uses them again: a limit of addresses (ulimit -v)
    has no others to give.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)


def peak_memory(device: torch.device, gpus: int = 1) -> int:
    """Return the most bytes that were in use so far: on the fullest of its GPUs, or of this
    process.
    """
    if device.type == "cuda":
        first = device.index or 0
        return max(torch.cuda.max_memory_allocated(first + number) for number in range(gpus))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def reseed(device: torch.device, *parts: int | str, gpus: int = 1) -> None:
    """Seed what dropout draws from, another way on each of this process's GPUs.

    The default generators' own method costs 1 us, torch.manual_seed 200.
    """
    number = key(*parts) >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        first = device.index or 0
        for gpu in range(gpus):
            seed = key(*parts, gpu) >> 1 if gpu else number
            torch.cuda.default_generators[first + gpu].manual_seed(seed)
