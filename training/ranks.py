"""This process among those that train together: who it is, what they add up, what happens when one is lost.

Only tensors cross ranks, never objects. `torchrun` tells who is there; one process alone is rank 0 of 1.
"""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from base.errors import Failed

SILENCE = timedelta(seconds=50)  # after which a rank that takes no part is lost


@dataclass(frozen=True)
class Ranks:
    """rank of world; local: its number on this machine; node: this machine's number."""

    rank: int = 0
    world: int = 1
    local: int = 0
    node: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Add `value` up over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Take the largest of `value` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def agree(self, *numbers: int) -> list[int]:
        """Return the largest of each number over all ranks; the device is not asked."""
        return self.largest(torch.tensor(numbers)).tolist() if self.world > 1 else list(numbers)

    def collect(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, rank after rank, on rank 0; its own on every other. rows: (n, ...) on the host."""
        if self.world == 1:
            return rows
        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts)
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in range(self.world)] if self.first else None
        dist.gather(padded, every)
        return rows if every is None else torch.cat([p[:n] for p, n in zip(every, counts.tolist(), strict=True)])

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the running statistics of rank 0."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def in_turn(self, what: str) -> Iterator[None]:
        """Do something on rank 0, then on one rank of every other machine, then on the rest: they find its files there."""
        if self.world == 1:
            yield
            return
        store = dist.distributed_c10d._get_default_store()
        if not self.first:
            while not store.check([f"{what} {self.node if self.local else 'first'}"]):
                time.sleep(0.02)  # not the store's own wait, which no signal reaches
        yield
        for place in ["first", self.node] if self.first else [] if self.local else [self.node]:
            store.set(f"{what} {place}", "done")


def join(device: torch.device) -> Ranks:
    """Join the other ranks, if torchrun started this process; all but the first then print nothing but errors."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks()
    env = {name: int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")}
    if env["WORLD_SIZE"] > 1 and not dist.is_initialized():
        watch = threading.Timer(SILENCE.seconds, _give_up, [env["RANK"]])
        watch.daemon = True
        watch.start()
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(), rank=env["RANK"], world_size=env["WORLD_SIZE"], timeout=SILENCE)
        watch.cancel()
    if env["RANK"]:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    return Ranks(env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["GROUP_RANK"])


def _store() -> Any:
    """Return where the ranks find each other.

    After a restart on one machine torchrun hands out the same store, with the addresses of the ranks that are gone: gloo
    then waited for them for ever. Several machines get a new one each time, and may count their restarts differently.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=SILENCE))
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if alone else ''}", store)


def _give_up(rank: int) -> None:
    """End a process that waits inside of a library, where no exception reaches it."""
    print(f"rank {rank}: the other ranks cannot be reached: start again, with --continue", file=sys.stderr, flush=True)
    os._exit(1)


def leave() -> None:
    """Leave the group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def together(ranks: Ranks, command: str) -> Iterator[None]:
    """Turn a lost rank into one line: whoever is left stops, with what was saved. Raises Failed."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or isinstance(error, Failed) or not _is_loss(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise Failed(
            f"rank {ranks.rank} of {ranks.world}: another rank has ended or cannot be reached ({reason}): if it says nothing "
            f"itself it was killed or cut off; go on with {command}"
        ) from None


def only_last(network: nn.Module, last: bool) -> Any:
    """Return a context in which gradients of all parts but the last stay on their rank."""
    parallel = isinstance(network, nn.parallel.DistributedDataParallel)
    return contextlib.nullcontext() if last or not parallel else network.no_sync()  # type: ignore[operator]


def _is_loss(error: RuntimeError) -> bool:
    """True where a collective failed for a peer's sake."""
    words = ("Connection", "Timed out", "timed out", "Broken pipe", "gloo", "NCCL")
    return isinstance(error, dist.DistBackendError) or any(word in str(error) for word in words)


def wrap(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the network as the ranks train it: the mean of all ranks' gradients.

    Unused parameters are looked for although there are none: the buckets then stay as they are first made, and a run that
    was stopped adds up in the same order as one that was not.
    """
    if ranks.world == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.14: of an argument that older ones know by this name only
        return nn.parallel.DistributedDataParallel(network, devices, broadcast_buffers=False, find_unused_parameters=True)
