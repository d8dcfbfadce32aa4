"""This process among those that train together: who it is, what they add up, what happens when one
is lost.

Only tensors cross ranks, never objects. torchrun tells who is there; one process alone is rank 0 of
1.
"""

import atexit
import contextlib
import functools
import itertools
import multiprocessing
import os
import socket
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

from base.arguments import number_of
from base.errors import Failed, Refused
from base.randomness import key

# A rank whose pulse is not seen for so long is lost. A rank may work alone for longer than that
# (average precision of a large test, a slow disk, compiling): its pulse comes from a thread.
SILENCE = timedelta(seconds=50)
# Seconds between two pulses.
PULSE = 5.0
# Of a collective: pulses find what is lost.
PATIENCE = timedelta(days=1)
# Seconds between two looks at another rank's mark.
POLL = 0.02
# Numbers the groups that this process joins, the same on every rank.
_joined = itertools.count()


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
        # Gathering needs one size: shares are padded and cut again.
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
        padded[: len(rows)] = rows

        gathered = [torch.empty_like(padded) for _ in range(self.world)] if self.first else None
        dist.gather(padded, gathered)
        if gathered is None:
            return rows
        pairs = zip(gathered, counts.tolist(), strict=True)
        return torch.cat([part[:count] for part, count in pairs])

    def told_by_local_first(self, *numbers: int) -> list[int]:
        """Return the numbers that the first rank of this machine gives; the others' do not
        count.
        """
        if self.world == 1:
            return list(numbers)
        told = torch.zeros(self.world, len(numbers), dtype=torch.int64)
        if not self.local:
            told[self.rank] = torch.tensor(numbers)
        dist.all_reduce(told)
        return told[self.rank - self.local].tolist()

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


def join(device: torch.device, resume_command: str = "") -> Ranks:
    """Join the other ranks, if torchrun started this process; all but the first then print nothing
    but errors. Raises Refused where two ranks have one GPU.
    """
    if not os.environ.get("RANK") or not os.environ.get("WORLD_SIZE"):
        return Ranks()

    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
    rank, world, local, node = (number_of(name, 0) for name in told)
    if world > 1 and not dist.is_initialized():
        watch = threading.Timer(SILENCE.seconds, _give_up, [rank])
        watch.daemon = True
        watch.start()
        # Both: stopping and saving are agreed on on the host, gradients on the device.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, start = _store()
        # Folds join anew in one process: the marks and addresses before are not theirs.
        names = f"{start} group {next(_joined)}"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(names, store),
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        watch.cancel()
        # Of its own connection: a store answers one question at a time.
        Pulse(dist.PrefixStore(names, store.clone()), rank, world, resume_command).start()
        _refuse_shared_gpu(device, rank, world)
    if rank:
        # For as long as the process lives.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    return Ranks(rank, world, local, node)


def _refuse_shared_gpu(device: torch.device, rank: int, world: int) -> None:
    """Raise Refused where two ranks were given one GPU: they would wait for each other for ever."""
    if device.type != "cuda":
        return
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", device.index)
    own = key(socket.gethostname(), f"{uuid} {device.index}") >> 1
    keys = torch.zeros(world, dtype=torch.int64)
    keys[rank] = own
    dist.all_reduce(keys)
    others = [other for other in range(world) if other != rank and keys[other] == own]
    if others:
        raise Refused(
            f"ranks {rank} and {others[0]} have the same GPU, {device}: start fewer ranks a machine"
        )


class Pulse(threading.Thread):
    """Tells the other ranks that this one lives; ends the process when one of them is silent."""

    def __init__(self, store: dist.Store, rank: int, world: int, resume_command: str) -> None:
        super().__init__(name="pulse", daemon=True)
        self.store = store
        self.rank = rank
        self.world = world
        self.resume_command = resume_command
        self.seen: dict[int, tuple[bytes, float]] = {}
        self.ended = threading.Event()
        # A thread that is in the store's code when the interpreter goes aborts the process.
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the thread: this process leaves."""
        self.ended.set()
        self.join(PULSE)

    def run(self) -> None:
        self.store.set_timeout(SILENCE)
        beat = 0

        while not self.ended.is_set():
            beat += 1
            try:
                self.store.set(f"pulse {self.rank}", str(beat))
                lost = self._lost()
            except Exception as error:  # the machine of the store is gone, or this process ends
                if not dist.is_initialized():
                    return
                lost = str(error).splitlines()[0][:200]
            if self.ended.is_set() or not dist.is_initialized():
                return
            if lost:
                self._end(lost)
            self.ended.wait(PULSE)

    def _lost(self) -> str:
        """Return which rank has been silent for too long, "" where none has."""
        now = time.monotonic()
        for other in range(self.world):
            name = f"pulse {other}"
            beat = self.store.get(name) if self.store.check([name]) else b""
            if other not in self.seen or self.seen[other][0] != beat:
                self.seen[other] = (beat, now)
            silent = now - self.seen[other][1]
            if beat != LEFT and silent > SILENCE.seconds:
                return f"rank {other} was silent for {silent:.0f} s"

        return ""

    def _end(self, reason: str) -> None:
        """End the process from beside its main thread, which no exception reaches."""
        message = _lost_line(self.rank, self.world, reason, self.resume_command)
        print(message, file=sys.stderr, flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(1)


# The last pulse of a rank that has finished.
LEFT = b"left"


def _lost_line(rank: int, world: int, reason: str, resume_command: str) -> str:
    return (
        f"rank {rank} of {world}: another rank has ended or cannot be reached ({reason}): if it "
        "says "
        f"nothing itself it was killed or cut off; resume with: {resume_command}"
    )


@functools.cache
def _store() -> tuple[dist.Store, str]:
    """Return where the ranks find each other, one for as long as the process lives, and the prefix
    of this start's names.

    After a restart on one machine torchrun hands out the same store, with the addresses of the
    ranks that are gone: gloo then waited for them for ever. Several machines get a new one each
    time, and may count their restarts differently.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=SILENCE))
    one_machine = number_of("GROUP_WORLD_SIZE", 1) == 1
    start = str(number_of("TORCHELASTIC_RESTART_COUNT", 0)) if one_machine else ""
    return store, f"start {start}"


def _give_up(rank: int) -> None:
    """End a process that waits inside of a library, where no exception reaches it."""
    message = f"rank {rank}: the other ranks cannot be reached: start all of them again to resume"
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def leave() -> None:
    """Leave the group, where there is one."""
    if dist.is_initialized():
        for thread in threading.enumerate():
            if isinstance(thread, Pulse):
                thread.stop()
        store = dist.distributed_c10d._get_default_store()
        store.set(f"pulse {dist.get_rank()}", LEFT.decode())
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
        raise Failed(_lost_line(ranks.rank, ranks.world, reason, resume_command)) from None


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
