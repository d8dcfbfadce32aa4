"""Activations that are computed again in the backward pass, to save memory."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed


class _Recomputed(nn.Sequential):
    """A Sequential that keeps only some activations and computes the others again in the backward
    pass.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(images)
        for part in self.parts():
            images = recomputed(
                part, images, use_reentrant=False, context_fn=partial(_contexts, part)
            )
        return images

    def parts(self) -> list[nn.Sequential]:
        """Split into about as many parts as layers a part; none begins with a layer that overwrites
        its input.
        """
        length = max(2, isqrt(len(self)) + 1)
        parts: list[list[nn.Module]] = []
        for layer in self:
            if not parts or (len(parts[-1]) >= length and not getattr(layer, "inplace", False)):
                parts.append([])
            parts[-1].append(layer)
        return [nn.Sequential(*part) for part in parts]


def _contexts(part: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _frozen_statistics(part)


@contextmanager
def _frozen_statistics(part: nn.Module) -> Iterator[None]:
    """While a part is computed again its running statistics stay as they are: they have seen this
    batch.
    """
    before = [(buffer, buffer.clone()) for buffer in part.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


def recompute(network: nn.Module) -> None:
    """Save memory: make every Sequential of some length recompute its activations.

    Names and weights stay.
    """
    for child in network.children():
        if (
            type(child) is nn.Sequential
            and len(child) > 3
            and any(isinstance(m, nn.Conv2d) for m in child.modules())
        ):
            child.__class__ = _Recomputed
        else:
            recompute(child)
