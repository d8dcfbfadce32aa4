"""Activations that are computed again in the backward pass, to save memory."""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

# Blocks of one kind from which on they are what a network is built of.
MIN_BLOCKS = 3
# Layers above which a Sequential with convolutions is recomputed in parts.
MIN_LAYERS = 3


class _Recomputed(nn.Sequential):
    """A Sequential that keeps only some activations and computes the others again."""

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(images)
        for part in self.parts():
            images = recomputed(
                part, images, use_reentrant=False, context_fn=partial(_contexts, part)
            )
        return images

    def parts(self) -> list[nn.Sequential]:
        """Split into about as many parts as layers a part.

        None begins with a layer that overwrites its input.
        """
        length = max(2, isqrt(len(self)) + 1)
        parts: list[list[nn.Module]] = []
        for layer in self:
            if not parts or (len(parts[-1]) >= length and not getattr(layer, "inplace", False)):
                parts.append([])
            parts[-1].append(layer)

        return [nn.Sequential(*part) for part in parts]


@functools.cache
def _recomputing(kind: Any) -> type[nn.Module]:
    """Return the class of a block as one whose forward pass is computed again."""

    def forward(self: nn.Module, *inputs: Tensor) -> Tensor:
        run = partial(kind.forward, self)
        if not (self.training and torch.is_grad_enabled()):
            return run(*inputs)
        contexts = partial(_contexts, self)
        return recomputed(run, *inputs, use_reentrant=False, context_fn=contexts)

    return type(kind.__name__, (kind,), {"forward": forward})


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_statistics(part)


@contextmanager
def _frozen_statistics(part: nn.Module) -> Iterator[None]:
    """While a part is computed again its running statistics stay: they have seen this batch."""
    before = [(buffer, buffer.clone()) for buffer in part.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


def recompute(network: nn.Module) -> int:
    """Save memory: recompute long Sequentials, or the blocks that a network repeats.

    Names and weights stay. Returns how many parts are recomputed: 0 where nothing repeats.
    """
    return _recompute_sequentials(network) or _recompute_blocks(network)


def _recompute_sequentials(network: nn.Module) -> int:
    count = 0
    for child in network.children():
        convolutions = any(isinstance(module, nn.Conv2d) for module in child.modules())
        if type(child) is nn.Sequential and len(child) > MIN_LAYERS and convolutions:
            child.__class__ = _Recomputed
            count += 1
        else:
            count += _recompute_sequentials(child)
    return count


def _is_block(module: nn.Module) -> bool:
    """True for a module that is made of others, and is no container of torch's own."""
    return bool(list(module.children())) and not type(module).__module__.startswith("torch.nn")


def _recompute_blocks(network: nn.Module) -> int:
    """Recompute the outermost blocks whose class stands there several times."""
    kinds = Counter(type(module) for module in network.modules() if _is_block(module))
    blocks = [module for module in network.modules() if kinds[type(module)] >= MIN_BLOCKS]
    inner = {below for block in blocks for below in block.modules() if below is not block}
    outermost = [block for block in blocks if block not in inner and _is_block(block)]
    for block in outermost:
        kind: Any = type(block)
        block.__class__ = _recomputing(kind)
    return len(outermost)
