"""DataParallel as it should be: one process, a replica of the network in a thread of its own on
each GPU.

torch's own opens autocast in its threads without the type that was asked for, leaves GPUs without
images where a batch is short, and seeds all replicas alike. Networks are scattered and gathered by
torch's functions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import gather, parallel_apply, replicate


class Replicas(nn.Module):
    """The network over several GPUs. gpus: their numbers, the first holds the weights.

    least: images that a replica needs at least in training, 2 with batch norm: a share is never
    smaller, a short batch goes to fewer GPUs.
    """

    def __init__(self, module: nn.Module, gpus: list[int], least: int = 1) -> None:
        super().__init__()
        self.module = module
        self.gpus = gpus
        self.least = least

    def forward(self, images: Tensor, heads: bool = False) -> Any:
        """images: (N, 3, S, S) on the first GPU -> what the network gives for all, there."""
        shares = self.shares(images)
        gpus = self.gpus[: len(shares)]
        if len(shares) == 1:
            return self.module(images, heads=heads)
        replicas = replicate(self.module, gpus, detach=not torch.is_grad_enabled())
        inputs = [
            (share.to(torch.device("cuda", gpu), non_blocking=True),)
            for share, gpu in zip(shares, gpus, strict=True)
        ]
        run = in_callers_precision()
        calls: list[Any] = [partial(run, replica, heads=heads) for replica in replicas]
        return gather(parallel_apply(calls, inputs, devices=gpus), gpus[0])

    def shares(self, images: Tensor) -> tuple[Tensor, ...]:
        """Split a batch over the GPUs, sizes differ by one at most."""
        least = self.least if self.training else 1
        count = max(1, min(len(self.gpus), len(images) // least))
        return images.tensor_split(count)


def in_callers_precision() -> Callable[..., Any]:
    """Return what calls a module under this thread's autocast, in whatever thread it is called.

    Autocast's type belongs to the thread; in a new one it is float16.
    """
    enabled = torch.is_autocast_enabled("cuda")
    precision = torch.get_autocast_dtype("cuda")

    def call(module: nn.Module, images: Tensor, **named: Any) -> Any:
        with torch.autocast("cuda", precision, enabled=enabled):
            return module(images, **named)

    return call
