"""What a network makes of an image before its last layer, and where it looked for a class."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A map of fewer positions a side says nothing of where.
MIN_SIDE = 2


def features(network: nn.Module, last: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the last layer gets, (N, F) float32, and the logits, (N, K).

    last: that layer; images: (N, 3, S, S) uint8. Where the last layer is a convolution, what it
    gets is averaged over all positions.
    """
    found: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        logits = network(images)
    finally:
        handle.remove()
    own = found[-1].float()
    return (own.flatten(2).mean(2) if own.dim() == 4 else own.flatten(1)), logits


def heatmaps(network: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return Grad-CAM's maps, (N, S, S) float32 in [0, 1]: how much each place speaks for a class.

    images: (N, 3, S, S) uint8; labels: (N,), None for the most probable class of each image.

    Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2, of the last module whose output has
    positions. Of transformers that is their last block: its tokens are positions, but for the one
    that stands for the class. Raises ValueError for a network without positions.
    """
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad and _positions(output).numel():
            outputs.append(output)

    handles = [module.register_forward_hook(keep) for module in network.modules()]
    training = network.training
    network.eval()
    try:
        with torch.enable_grad(), _without_in_place(network):
            # Frozen weights need no gradient; what comes of a pixel does.
            given = images.float().div(255).requires_grad_(True)
            logits = network(given)
            chosen = logits.argmax(1) if labels is None else labels
            score = logits.gather(1, chosen[:, None]).sum()
            gradients = torch.autograd.grad(score, outputs, allow_unused=True)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()

    used = [
        (_positions(output), _positions(gradient))
        for output, gradient in zip(outputs, gradients, strict=True)
        if gradient is not None
    ]
    if not used:
        raise ValueError("no layer of this network has positions")
    # A transformer's last block hands on the class's token alone: its positions have no gradient.
    output, gradient = next((pair for pair in reversed(used) if pair[1].any()), used[-1])
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * output).sum(1, keepdim=True).relu().detach()
    maps = F.interpolate(maps.float(), images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


def _positions(output: Tensor) -> Tensor:
    """Return an output as (N, C, h, w), empty where it has no positions.

    It comes as (N, C, h, w), of some transformers as (N, h, w, C) or (N, tokens, C), where the
    first token may stand for the class.
    """
    if output.dim() == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        output = output.permute(0, 3, 1, 2) if channels_last else output
        return output if min(output.shape[2:]) >= MIN_SIDE else output.new_empty(0)
    for extra in (0, 1) if output.dim() == 3 else ():
        side = round((output.shape[1] - extra) ** 0.5)
        if side >= MIN_SIDE and side * side == output.shape[1] - extra:
            return output[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return output.new_empty(0)


@contextlib.contextmanager
def _without_in_place(network: nn.Module) -> Iterator[None]:
    """Within it no activation overwrites its input, of which a gradient is asked for."""
    changed = [module for module in network.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]
