"""This process among those that train together: who it is, what they add up, what happens when one
is lost.

Only tensors cross ranks, never objects. torchrun tells who is there; one process alone is rank 0 of
1.
"""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from base.errors import Failed

SILENCE = timedelta(seconds=50)  # after which a rank that takes no part is lost
POLL = 0.02  # seconds between two looks at another rank's mark


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
        """Return the rows of all ranks, rank after rank, on rank 0; its own on every other.

        rows: (n, ...) on the host, with another n on each rank.
        """
        if self.world == 1:
            return rows

        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts)
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
        padded[: len(rows)] = rows

        gathered = [torch.empty_like(padded) for _ in range(self.world)] if self.first else None
        dist.gather(padded, gathered)
        if gathered is None:
            return rows
        pairs = zip(gathered, counts.tolist(), strict=True)
        return torch.cat([part[:count] for part, count in pairs])

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the running statistics of rank 0."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def in_turn(self, what: str) -> Iterator[None]:
        """Do something on rank 0, then on one rank of each other machine, then on the rest, who
        find its files.
        """
        if self.world == 1:
            yield
            return

        store = dist.distributed_c10d._get_default_store()
        awaited = f"{what} {self.node if self.local else 'first'}"
        # Not the store's own wait, which no signal reaches.
        while not self.first and not store.check([awaited]):
            time.sleep(POLL)
        yield
        marks = ["first", self.node] if self.first else [] if self.local else [self.node]
        for mark in marks:
            store.set(f"{what} {mark}", "done")


def join(device: torch.device) -> Ranks:
    """Join the other ranks, if torchrun started this process; all but the first then print nothing
    but errors.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks()

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
    rank, world, local, node = (int(os.environ.get(name, "0")) for name in names)
    if world > 1 and not dist.is_initialized():
        watch = threading.Timer(SILENCE.seconds, _give_up, [rank])
        watch.daemon = True
        watch.start()
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_store(), rank=rank, world_size=world, timeout=SILENCE
        )
        watch.cancel()
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    return Ranks(rank, world, local, node)


def _store() -> dist.Store:
    """Return where the ranks find each other.

    After a restart on one machine torchrun hands out the same store, with the addresses of the
    ranks that are gone: gloo then waited for them for ever. Several machines get a new one each
    time, and may count their restarts differently.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=SILENCE))
    one_machine = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else ""
    return dist.PrefixStore(f"start {start}", store)


def _give_up(rank: int) -> None:
    """End a process that waits inside of a library, where no exception reaches it."""
    message = f"rank {rank}: the other ranks cannot be reached: start all of them again to resume"
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def leave() -> None:
    """Leave the group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def together(ranks: Ranks, resume_command: str) -> Iterator[None]:
    """Turn a lost rank into one line: whoever is left stops, with what was saved. Raises Failed."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or isinstance(error, Failed) or not _is_loss(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise Failed(
            f"rank {ranks.rank} of {ranks.world}: another rank has ended or cannot be reached "
            f"({reason}): if it "
            f"says nothing itself it was killed or cut off; resume with: {resume_command}"
        ) from None


def _is_loss(error: RuntimeError) -> bool:
    """True where a collective failed for a peer's sake."""
    words = ("Connection", "Timed out", "timed out", "Broken pipe", "gloo", "NCCL")
    return isinstance(error, dist.DistBackendError) or any(word in str(error) for word in words)


def reduced_if(last: bool, network: nn.Module) -> AbstractContextManager[object]:
    """Return a context in which gradients of all parts but the last stay on their rank."""
    if last or not isinstance(network, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


def make_distributed(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the network as the ranks train it: with the mean of all ranks' gradients."""
    if ranks.world == 1:
        return network

    devices = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.14 warns of an argument that older ones know by this name only.
        warnings.simplefilter("ignore")
        # Unused parameters are looked for although there are none: the buckets then stay as they
        # are first made, and a run that was stopped adds up in the same order as one that was not.
        return nn.parallel.DistributedDataParallel(
            network, devices, broadcast_buffers=False, find_unused_parameters=True
        )
