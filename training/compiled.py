"""A network whose steps are one CUDA graph: launches cost next to nothing, for small networks and
batches.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Compiled(nn.Module):
    """The network, compiled with CUDA graphs.

    A graph holds one shape: a batch of another size runs eagerly.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.graphed = torch.compile(module, mode="reduce-overhead", dynamic=False)
        # Of the first batch.
        self.size: int | None = None

    def forward(self, images: Tensor, heads: bool = False) -> Any:
        """images: (N, 3, S, S) uint8 -> what the network gives."""
        self.size = self.size or len(images)
        if len(images) != self.size:
            return self.module(images, heads=heads)
        torch.compiler.cudagraph_mark_step_begin()
        given = self.graphed(images, heads=heads)
        # The next replay writes over what a graph gave.
        return tuple(head.clone() for head in given) if heads else given.clone()
