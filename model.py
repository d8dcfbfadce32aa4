"""A network by its name, with normalisation as its first layer, and weights from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import NETWORKS
from utils import Refused

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of pixels in [0, 1]


@dataclass(frozen=True)
class Spec:
    """All that it takes to build a network again: name, class names, sizes in pixels, stem below 64 pixels."""

    netType: str
    classes: tuple[str, ...]
    imageSize: int
    cropSize: int
    stem: str = "fast"
    interpolation: str = "bilinear"

    def plain(self) -> dict[str, Any]:
        return self.__dict__ | {"classes": list(self.classes)}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "Spec":
        return cls(**plain | {"classes": tuple(plain["classes"])})


class Normalise(nn.Module):
    """uint8 pixels to floats of zero mean and unit deviation. mean, std: (3,) of pixels in [0, 1]."""

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) uint8, or float in [0, 1] -> (N, 3, S, S) of the buffers' float type."""
        scale = (1 / 255 if images.dtype == torch.uint8 else 1.0) / self.std
        images = images.to(self.mean.dtype, memory_format=torch.channels_last)
        return torch.addcmul(-(self.mean / self.std)[:, None, None], images, scale[:, None, None])


class Network(nn.Module):
    """Normalise, then the named network. forward gives logits alone; `heads` gives every head's, for training."""

    def __init__(self, body: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.body = body
        self.spec = spec

    def forward(self, images: Tensor, heads: bool = False) -> Any:
        """images: (N, 3, S, S) uint8 -> logits (N, K); with heads a tuple of them, the main head's first."""
        pixels = self.normalise(images)
        if not heads:
            return self.body(pixels)
        return self.body.heads(pixels) if hasattr(self.body, "heads") else (self.body(pixels),)


def create(name: str, classes: int | Sequence[str], size: int, *, stem: str = "fast", image_size: int = 0, **more: str) -> Network:
    """Build the network called `name` for size x size pixels. classes: how many, or their names.

    Raises Refused for an unknown name, fewer than 2 classes and images too small for it.
    """
    if name not in NETWORKS:
        raise Refused(f"unknown network '{name}': allowed are {', '.join(NETWORKS)}")
    names = tuple(str(k) for k in range(classes)) if isinstance(classes, int) else tuple(classes)
    entry = NETWORKS[name]
    if len(names) < 2:
        raise Refused(f"a classifier needs 2 classes or more, got {len(names)}: {', '.join(names)}")
    if size < entry.smallest:
        raise Refused(f"{name} needs images of at least {entry.smallest} pixels a side, got {size}: raise --cropSize")
    module, function = entry.builder.split(":")
    body = getattr(import_module(f"models.{module}"), function)(len(names), size, stem)
    return Network(body, Spec(name, names, image_size or size, size, stem, **more))


def parameters(network: nn.Module) -> int:
    """Count the parameters that train or could."""
    return sum(parameter.numel() for parameter in network.parameters())


class _Recomputed(nn.Sequential):
    """A Sequential that keeps only some activations and computes the others again in the backward pass."""

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(images)
        layers = list(self)
        length = max(2, isqrt(len(layers)) + 1)
        for start in range(0, len(layers), length):
            part = nn.Sequential(*layers[start : start + length])
            images = checkpoint(part, images, use_reentrant=False, context_fn=lambda part=part: (_Keep(part, 1), _Keep(part, 0)))
        return images


class _Keep:
    """While a part is computed again its running statistics stay as they are: they have seen this batch."""

    def __init__(self, part: nn.Module, first: bool) -> None:
        self.norms = [] if first else [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.track_running_stats = False

    def __exit__(self, *_: object) -> None:
        for norm in self.norms:
            norm.track_running_stats = True


def recompute(network: nn.Module) -> None:
    """Save memory: make every Sequential of some length recompute its activations. Names and weights stay."""
    for child in network.children():
        if type(child) is nn.Sequential and len(child) > 3 and any(isinstance(m, nn.Conv2d) for m in child.modules()):
            child.__class__ = _Recomputed
        else:
            recompute(child)


def load_weights(network: Network, value: Any, source: str) -> str:
    """Fill `network` from a checkpoint, a snapshot or a bare state dict; return what was replaced, "" if nothing.

    Mean and std come along; a file without them gets ImageNet's, torchvision's. Raises Refused where names or shapes
    do not fit.
    """
    state = state_of(value, source)
    own = network.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        raise Refused(f"{source} does not fit {network.spec.netType}: missing {missing[:3]}, unknown {extra[:3]}")
    wrong = [name for name in own if own[name].shape != state[name].shape]
    last = set(head_names(network))
    replaced = [name for name in wrong if name in last]
    for name in wrong:
        if name not in last:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the network"
            raise Refused(f"{source} does not fit {network.spec.netType}: {name} is {shapes}")
    network.load_state_dict({name: own[name] if name in replaced else state[name] for name in own})
    return ", ".join(replaced)


def head_names(network: nn.Module) -> list[str]:
    """Return the names of the parameters whose first size is the number of classes: the last layers."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return [f"{linear[-1]}.{kind}" for kind in ("weight", "bias")] if linear else []


def state_of(value: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict in a loaded file, by our names. Raises Refused where there is none."""
    if isinstance(value, dict) and isinstance(value.get("network"), dict):
        value = value["network"]
    if not isinstance(value, dict) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise Refused(f"{source} holds no weights: --retrain takes our checkpoints and snapshots, or a state dict")
    state = {name.removeprefix("module."): tensor for name, tensor in value.items()}
    if "normalise.mean" not in state:
        state = {f"body.{name}": tensor for name, tensor in state.items()}
        state |= {"normalise.mean": torch.tensor(IMAGENET_MEAN), "normalise.std": torch.tensor(IMAGENET_STD)}
    return state
