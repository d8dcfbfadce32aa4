"""How many images fit is found by trying, and said with the options that keep the batch."""

import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common import ROOT
from torch import nn

from assembly import training
from base.errors import Failed
from run import memory
from run.memory import enough_memory, room_for, train_trial
from training.batchnorm import SyncBatchNorm
from training.metrics import Criterion
from training.step import Step

CPU = torch.device("cpu")
FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def step_of(world: int = 1, accumulate: int = 1) -> Step:
    ranks: Any = SimpleNamespace(world=world, rank=0)
    return Step(CPU, ranks, accumulate=accumulate)


def holds(most: int, tried: list[int]) -> Callable[[int], None]:
    """A machine with room for so many images, which says so in its own words."""

    def trial(count: int) -> None:
        tried.append(count)
        assert len(tried) < 50
        if count > most:
            raise RuntimeError("could not create a primitive")

    return trial


def said(step: Step, batch: int, most: int, **more: Any) -> tuple[str, list[int]]:
    tried: list[int] = []
    with pytest.raises(Failed) as error, enough_memory(step, batch, holds(most, tried), **more):
        raise RuntimeError(FULL)
    return str(error.value), tried


@pytest.mark.parametrize("most", [1, 2, 3, 8, 31, 32, 33, 63])
def test_the_largest_power_of_two_that_fits_is_said(most: int) -> None:
    fits = 2 ** int(math.log2(most))
    message, tried = said(step_of(), 64, most)
    assert message == (
        "training on 64 images at once needs more memory than cpu has; "
        f"{fits} images at once fit: --accumulate {64 // fits} keeps the batch"
    )
    # From small to large, none as large as what failed.
    assert tried == [2**n for n in range(len(tried))]
    assert max(tried) == min(2 * fits, 32)


def test_the_fewest_that_can_be_tried_are_tried_first() -> None:
    message, tried = said(step_of(), 64, 5, least=2)
    assert tried == [2, 4, 8]
    assert "4 images at once fit" in message
    message, tried = said(step_of(), 64, 1, least=2)
    assert tried == [2]
    assert message == "training on 64 images at once needs more memory than cpu has"


@pytest.mark.parametrize(
    ("world", "accumulate", "batch", "parts"),
    # So many parts of a rank's share have at most 4 images.
    [(2, 1, 64, 8), (1, 4, 64, 16), (4, 2, 65, 6), (1, 1, 7, 2)],
)
def test_parts_are_of_what_a_rank_trains_at_once(
    world: int, accumulate: int, batch: int, parts: int
) -> None:
    message, _ = said(step_of(world, accumulate), batch, 4)
    assert message.endswith(f"4 images at once fit: --accumulate {parts} keeps the batch")
    size = math.ceil(batch / (world * accumulate))
    assert math.ceil(size / (parts // accumulate)) <= 4


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (3, 12)])
def test_a_test_is_not_done_in_parts(world: int, batch: int) -> None:
    message, tried = said(step_of(world, 16), 100, 5, testing=True)
    assert message.startswith("testing 100 images at once needs more memory")
    assert message.endswith(f"4 images at once fit: --batchSize {batch}")
    assert tried == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (RuntimeError(FULL), True),
        (RuntimeError("[enforce fail] not enough memory: you tried to"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (torch.OutOfMemoryError("Tried to allocate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (Failed("a worker was ended: out of memory"), False),
    ],
)
def test_only_a_lack_of_memory_is_taken_for_one(error: RuntimeError, is_memory: bool) -> None:
    for made in (enough_memory(step_of(), 8, holds(9, [])), room_for("the network", CPU)):
        with pytest.raises(RuntimeError) as caught, made:
            raise error
        assert (caught.value is error) is not is_memory
    if is_memory:
        assert str(caught.value).startswith("the network needs more memory than cpu has free: ")


def test_no_room_for_an_optimizer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError(FULL)

    monkeypatch.setattr(training, "_make_updater", full)
    run: Any = SimpleNamespace(step=step_of(), ranks=SimpleNamespace(world=1))
    options: Any = SimpleNamespace(batchSize=8, accumulate=1)
    with pytest.raises(
        Failed, match=r"^the optimizer's state needs more memory than cpu has free:"
    ):
        training.make_updater(options, run, nn.Linear(2, 2))  # type: ignore[arg-type]


def test_what_filled_the_memory_is_gone_before_sizes_are_tried() -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def step() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise RuntimeError(FULL)

    def trial(count: int) -> None:
        assert held[0]() is None

    with pytest.raises(Failed, match="4 images at once fit"), enough_memory(step_of(), 8, trial):
        step()


def test_a_trial_is_a_step_and_leaves_nothing() -> None:
    calls: list[tuple[Any, ...]] = []

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3 * 5 * 5, 4))

        def forward(self, images: torch.Tensor, heads: bool = False) -> Any:
            calls.append((images.dtype, tuple(images.shape), heads))
            logits = images.float().flatten(1) @ self.weight
            if logits.requires_grad:
                logits.register_hook(lambda _: calls.append(("backward",)))
            return [logits] if heads else logits

    body = Body()
    train_trial(step_of(), 5, body, Criterion())(6)
    assert calls == [(torch.uint8, (6, 3, 5, 5), True), ("backward",)]
    assert body.weight.grad is None
    calls.clear()
    memory.test_trial(step_of(), 5, body)(6)
    assert calls == [(torch.uint8, (6, 3, 5, 5), False)]


def test_a_trial_of_one_rank_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may not lack memory: a gradient that is shared would wait for them for ever."""

    class Distributed(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("it would wait")

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Distributed)

    class Body(nn.Linear):
        def forward(self, images: torch.Tensor, heads: bool = False) -> Any:
            logits = super().forward(images.float().flatten(1))
            return [logits] if heads else logits

    body = Body(3 * 4 * 4, 5)
    trial = train_trial(step_of(), 4, Distributed(body), Criterion())
    assert trial is not None
    trial(2)
    assert body.weight.grad is None


def test_nothing_is_tried_where_batch_norm_would_wait_for_other_ranks() -> None:
    ours, theirs = nn.Sequential(SyncBatchNorm(3)), nn.Sequential(nn.SyncBatchNorm(3))
    for network in (ours, theirs):
        assert train_trial(step_of(), 4, network, Criterion()) is None
    with pytest.raises(Failed) as error, enough_memory(step_of(), 64, None):
        raise RuntimeError(FULL)
    assert str(error.value) == "training on 64 images at once needs more memory than cpu has"
    assert error.value.limit == "batch memory"


HELD = """
import resource
from run.memory import RESERVE, _reserved_addresses

def pages():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

before = pages()
with _reserved_addresses():
    print("free" if pages() < before + RESERVE else "held")
"""


@pytest.mark.parametrize(("limit", "held"), [("", "free"), ("ulimit -v 30000000; ", "held")])
def test_addresses_are_kept_for_trials_where_they_are_limited(limit: str, held: str) -> None:
    command = ["bash", "-c", f'{limit}exec "$0" -c "$1"', sys.executable, HELD]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"{held}\n", result.stderr
