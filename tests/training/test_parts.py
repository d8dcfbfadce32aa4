"""What ranks and GPUs need of a network does what torch's own does, tried in one process."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from common import ROOT
from torch import distributed as dist
from torch import nn

from training import ranks
from training.batchnorm import SyncBatchNorm, synchronise
from training.compiled import Compiled
from training.ranks import Ranks
from training.replicas import Replicas
from training.step import Step


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 5, 4), (6, 3)])
def test_batch_norm_over_one_rank_is_torchs(
    momentum: float | None, affine: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One rank's sums are the sums of all.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: None)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    norms = [kind(3, momentum=momentum, affine=affine) for _ in range(2)]
    if affine:
        torch.manual_seed(0)
        nn.init.normal_(norms[0].weight)
        nn.init.normal_(norms[0].bias)
        norms[1].load_state_dict(norms[0].state_dict())
    ours = synchronise(nn.Sequential(norms[1]), torch.device("cpu"))[0]
    assert type(ours) is SyncBatchNorm
    for batch in range(3):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(batch)) * 2 + 1
        given = [images.clone().requires_grad_() for _ in range(2)]
        found = [norm(value) for norm, value in zip(norms, given, strict=True)]
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
        for value in found:
            value.pow(3).sum().backward()
        torch.testing.assert_close(given[0].grad, given[1].grad, atol=1e-4, rtol=1e-4)
        for name, value in norms[0].state_dict().items():
            torch.testing.assert_close(value, norms[1].state_dict()[name], atol=1e-6, rtol=1e-5)
    for norm in norms:
        norm.eval()
    torch.testing.assert_close(norms[0](images), norms[1](images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 2.0, 4.0])
def test_batch_norm_over_ranks_loses_nothing_of_half_precision(
    mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: None)
    draws = torch.Generator().manual_seed(1)
    images = (torch.randn(64, 3, 8, 8, generator=draws) * 0.05 + mean).bfloat16()
    theirs, norm = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    ours = synchronise(nn.Sequential(norm), torch.device("cpu"))
    found = ours(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), theirs(images.float()), atol=0.02, rtol=0.01)
    torch.testing.assert_close(norm.running_var, theirs.running_var, atol=0, rtol=1e-5)


def test_batch_norm_of_ranks_with_gpus_is_torchs_own() -> None:
    network = synchronise(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), torch.device("cuda"))
    assert type(network[0]) is nn.SyncBatchNorm


class Heads(nn.Module):
    """Twice the images, and with heads three times as well; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: torch.Tensor, heads: bool = False) -> Any:
        self.calls += 1
        return (2.0 * images, 3.0 * images) if heads else 2.0 * images


def test_a_graph_has_one_size_and_gives_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {}
    replayed: list[torch.Tensor] = []
    order: list[str] = []

    def compile_(module: nn.Module, **more: Any) -> Any:
        """Return what a CUDA graph is like: its results lie in the same place each time."""
        settings.update(more)

        def graph(images: torch.Tensor, heads: bool) -> Any:
            found = module(images, heads=heads)
            values = found if heads else (found,)
            order.append("replay")
            if len(replayed) < len(values):
                replayed[:] = [torch.empty_like(value) for value in values]
            for place, value in zip(replayed, values, strict=False):
                place.copy_(value)
            return tuple(replayed) if heads else replayed[0]

        return graph

    monkeypatch.setattr(torch, "compile", compile_)
    begin = "cudagraph_mark_step_begin"
    monkeypatch.setattr(torch.compiler, begin, lambda: order.append("begin"))
    network = Compiled(Heads())
    assert settings == {"mode": "reduce-overhead", "dynamic": False}
    first, second = torch.full((4, 2), 1.0), torch.full((4, 2), 5.0)
    kept = network(first, heads=True)
    again = network(second, heads=True)
    for factor, one, other in zip((2.0, 3.0), kept, again, strict=True):
        assert torch.equal(one, factor * first)
        assert torch.equal(other, factor * second)
    alone = network(first)
    network(second)
    assert torch.equal(alone, 2 * first)
    # Each step begins anew: torch would otherwise keep what the one before gave.
    assert order == ["begin", "replay"] * 4
    # A batch of another size goes without the graph.
    places = [place.clone() for place in replayed]
    assert torch.equal(network(torch.ones(3, 2)), torch.full((3, 2), 2.0))
    assert len(order) == 8
    assert all(torch.equal(*pair) for pair in zip(places, replayed, strict=True))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_step_computes_in_its_precision(precision: torch.dtype | None) -> None:
    step = Step(torch.device("cpu"), precision=precision)
    with step.autocast():
        product = torch.ones(4, 4) @ torch.ones(4, 4)
    assert product.dtype == (precision or torch.float32)
    # Nothing of it stays.
    assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.float32


def test_dropout_is_drawn_by_seed_step_part_and_rank() -> None:
    def drawn(step: Step, number: int, part: int) -> float:
        step.reseed(number, part)
        return torch.rand(1).item()

    cpu = torch.device("cpu")
    cases = [
        (seed, rank, number, part)
        for seed in (0, 1)
        for rank in (0, 1)
        for number in (0, 1)
        for part in (0, 1)
    ]
    for _ in range(2):
        values = [
            drawn(Step(cpu, Ranks(rank, 2), seed), number, part)
            for seed, rank, number, part in cases
        ]
        assert len(set(values)) == len(cases)
        torch.rand(7)
    again = [
        drawn(Step(cpu, Ranks(rank, 2), seed), number, part) for seed, rank, number, part in cases
    ]
    assert again == values


@pytest.mark.parametrize("least", [None, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_gpus_share_a_batch_evenly_and_none_has_too_little(least: int | None, count: int) -> None:
    replicas = Replicas(nn.Identity(), [0, 1, 2, 3], **({"least": least} if least else {}))
    images = torch.arange(count)
    for training, smallest in ((True, least or 1), (False, 1)):
        replicas.train(training)
        shares = replicas.shares(images)
        sizes = [len(share) for share in shares]
        assert torch.equal(torch.cat(shares), images)
        assert len(sizes) == max(1, min(4, count // smallest))
        assert max(sizes) - min(sizes) <= 1


def test_one_gpu_needs_no_replicas() -> None:
    replicas = Replicas(Heads(), [0])
    images = torch.ones(3, 1)
    assert torch.equal(replicas(images), 2 * images)
    assert torch.equal(replicas(images, heads=True)[1], 3 * images)


def test_a_late_pulse_loses_no_rank() -> None:
    # A machine that is busy delays some of them.
    assert ranks.SILENCE.total_seconds() >= 8 * ranks.PULSE


LOST = """
from training.ranks import Pulse
pulse = object.__new__(Pulse)
pulse.rank, pulse.world, pulse.resume_command = 1, 3, "the command"
pulse._end("rank 0 was silent for 51 s")
print("still here")
"""


def test_a_lost_rank_ends_the_process_wherever_it_waits() -> None:
    command = [sys.executable, "-c", LOST]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (1, "")
    assert "(rank 0 was silent for 51 s)" in result.stderr
    assert result.stderr.endswith("resume with: the command\n")


def test_who_leaves_says_so_to_whoever_waits() -> None:
    """Another rank that still tests must not take a rank that has finished for lost."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    store = dist.distributed_c10d._get_default_store()
    ranks.leave()
    assert not dist.is_initialized()
    assert store.check(["pulse 0"])
    assert store.get("pulse 0") == ranks.LEFT


def test_a_step_is_one_part_on_one_device_unless_asked_otherwise() -> None:
    step = Step(torch.device("cpu"))
    assert (step.accumulate, step.gpus, step.ranks.world) == (1, 1, 1)
