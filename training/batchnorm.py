"""Batch norm over the images of all ranks, on CPUs, where torch's refuses."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the images of all ranks. Shares may differ, and may be empty."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(input)

        # Half precision is widened first, as in torch's own. float64: the variance is a small
        # difference of large sums.
        values = input.float() if input.dtype.itemsize < 4 else input
        dims = [0, *range(2, input.dim())]
        own = input.new_full((1,), input.numel() // input.shape[1], dtype=torch.float64)
        sums = [
            values.sum(dims, dtype=torch.float64),
            (values * values).sum(dims, dtype=torch.float64),
        ]
        sizes = [input.shape[1], input.shape[1], 1]
        total, squares, count = _Sum.apply(torch.cat([*sums, own])).split(sizes)
        mean = total / count
        variance = (squares / count - mean * mean).clamp_min(0)
        self._update_statistics(mean, variance, count)

        shape = (1, -1, *[1] * (input.dim() - 2))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale + (self.bias if self.affine else 0)
        result = values * scale.to(values.dtype).view(shape) + shift.to(values.dtype).view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards this batch's. mean, variance: (C,); count: (1,)."""
        # All three are there, or none.
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # As torch: without a momentum the mean of all batches so far.
        tracked = self.num_batches_tracked
        share = 1 / tracked.item() if self.momentum is None else self.momentum
        unbiased = variance * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm see all ranks' images. Names and weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
    return network
