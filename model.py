"""A network by its name, with normalisation as its first layer, and weights from a file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from base import archive
from base.errors import Refused
from base.fetch import digest_of, fetch
from models import NETWORKS, OURS


def pretrained(name: str) -> str:
    """Return the file of torchvision's published weights for a network, fetched if it is missing. Raises Refused."""
    from torchvision.models import get_model_weights

    twin = NETWORKS[name].twin
    if not twin:
        known = ", ".join(other for other, entry in OURS.items() if entry.twin)
        raise Refused(f"--pretrained: there are no published weights for {name}; there are for {known} and torchvision's own")
    weights = next(iter(get_model_weights(twin)))  # the first published ones: those of the paper's recipe
    path = Path(os.path.expanduser("~/.cache/torch/hub/checkpoints"), weights.url.rsplit("/", 1)[1])
    digest = path.stem.rsplit("-", 1)[1]
    if not path.exists():
        fetch(weights.url, path, digest, "sha256")
    elif not digest_of(path, "sha256").startswith(digest):
        raise Refused(f"{path} has a SHA-256 that does not begin with {digest}: remove it, it is then fetched again")
    return str(path)


def read_weights(path: str) -> Any:
    """Return what a file of weights holds: ours, verified, or others', read as plain data. Raises Refused."""
    try:
        return archive.read(path)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except archive.Damaged as error:
        raise Refused(str(error)) from None


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
    titles: tuple[str, ...] = ()  # what the classes are called where they are shown, if not by their names

    def plain(self) -> dict[str, Any]:
        return self.__dict__ | {"classes": list(self.classes), "titles": list(self.titles)}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "Spec":
        return cls(**plain | {"classes": tuple(plain["classes"]), "titles": tuple(plain.get("titles", ()))})


class Normalise(nn.Module):
    """uint8 pixels to floats of zero mean and unit deviation. mean, std: (3,) of pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

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
        return (images.to(self.mean.dtype) * scale[:, None, None]).sub_((self.mean / self.std)[:, None, None])


class Network(nn.Module):
    """Normalise, then the named network. forward gives logits alone; `heads` gives every head's, for training."""

    def __init__(self, body: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.normalise: Normalise = Normalise()
        self.body = body
        self.spec = spec
        self.still: list[nn.Module] = []  # batch norms whose statistics are held

    def train(self, mode: bool = True) -> "Network":
        """Switch between training and testing; what is frozen stays as in testing."""
        super().train(mode)
        for module in self.still:
            module.eval()
        return self

    def forward(self, images: Tensor, heads: bool = False) -> Any:
        """images: (N, 3, S, S) uint8 -> logits (N, K); with heads a tuple of them, the main head's first."""
        logits = self.body(self.normalise(images))
        every = tuple(logits) if isinstance(logits, tuple) else (logits,)
        return every if heads else every[0]


def create(
    name: str, classes: int | Sequence[str], size: int, *, stem: str = "fast", image_size: int = 0, **more: Any
) -> Network:
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
    module, function, *first = entry.builder.split(":")
    body = getattr(import_module(f"models.{module}"), function)(*first, len(names), size, stem)
    return Network(body, Spec(name, names, image_size or size, size, stem, **more))


def load(path: str) -> Network:
    """Return the network of a weights file or a checkpoint, in testing mode. Raises Refused."""
    try:
        value = archive.read(path)
        spec = Spec.read(value["model"])
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except (archive.Damaged, KeyError, TypeError) as error:
        raise Refused(f"{path} is no weights file of this suite: {error}") from None
    network = create(
        spec.netType, spec.classes, spec.cropSize, stem=spec.stem, image_size=spec.imageSize, interpolation=spec.interpolation,
        titles=spec.titles,
    )  # fmt: skip
    load_weights(network, value, path)
    return network.eval()


def parameters(network: nn.Module) -> int:
    """Count the parameters that train or could."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: Network) -> int:
    """Count the multiply-adds of an image in testing: those of convolutions and matrix products, nothing is computed."""
    size = network.spec.cropSize
    still = {name: value.to("meta") for name, value in network.state_dict().items()}
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(network, still, (torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta"),))
    network.train(training)
    return counter.get_total_flops() // 2


def layers(network: Network) -> list[nn.Module]:
    """Return the modules with parameters of their own, in the order in which they were made."""
    return [module for module in network.body.modules() if list(module.parameters(recurse=False))]


def freeze(network: Network, what: str) -> None:
    """Hold all weights but those of the last layers, and the statistics of their batch norms.

    what: "features", all but the classifier (where a network has no part of that name, all but its last layer), or how
    many last layers train. Raises Refused where nothing or everything would train.
    """
    every = layers(network)
    if what == "features":
        head = getattr(network.body, "classifier", None)
        training = [layer for layer in every if layer in set(head.modules())] if isinstance(head, nn.Module) else every[-1:]
    else:
        training = every[-int(what) :]
    if not 0 < len(training) < len(every):
        raise Refused(f"--freeze {what}: {network.spec.netType} has {len(every)} layers with weights, name fewer")
    for layer in every:
        if layer not in training:
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
            network.still += [layer] if isinstance(layer, nn.modules.batchnorm._BatchNorm) else []


def load_weights(network: Network, value: Any, source: str) -> list[str]:
    """Fill `network` from a checkpoint, a snapshot or a bare state dict; return the names of what starts anew.

    The last layers do where the file has another number of classes, auxiliary heads where it has none. Mean and std
    come along; a file without them is taken as torchvision's. Raises Refused, with names and shapes, for what does not
    fit, and for weights that are not finite.
    """
    spec = network.spec
    state = state_of(value, source, spec.netType)
    own = network.state_dict()
    heads = tuple(f"body.{prefix}." for prefix in NETWORKS[spec.netType].heads)
    missing = [name for name in own if name not in state and not name.startswith(heads or "-")]
    unknown = [name for name in state if name not in own and not name.startswith(AUXILIARY)]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    anew = [name for name in wrong if _is_last(own[name], state[name], len(spec.classes))]
    if missing or unknown or len(anew) < len(wrong):
        lines = [f"{name} is missing" for name in missing] + [f"{name} is unknown" for name in unknown]
        lines += [f"{n} is {[*state[n].shape]}, not {[*own[n].shape]}" for n in wrong if n not in anew]
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise Refused(f"{source} does not fit {spec.netType}: {'; '.join(lines[:4])}{more}")
    bad = next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None)
    if bad:
        raise Refused(f"{source} holds weights that are not finite: {bad}")
    anew += [name for name in own if name not in state]
    network.load_state_dict(own | {name: tensor for name, tensor in state.items() if name in own and name not in anew})
    return anew


AUXILIARY = ("body.aux1.", "body.aux2.", "body.AuxLogits.")  # heads that a file may have and a network not


def _is_last(own: Tensor, given: Tensor, classes: int) -> bool:
    """True for a weight or bias whose first size is the number of classes and whose other sizes agree."""
    return own.dim() > 0 and own.shape[0] == classes and own.dim() == given.dim() and own.shape[1:] == given.shape[1:]


def state_of(value: Any, source: str, name: str) -> dict[str, Tensor]:
    """Return the state dict in a loaded file, by our names. Raises Refused where there is none or it must not fit."""
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        theirs = value["model"].get("netType")
        if theirs != name:
            raise Refused(f"{source} holds {theirs}, not {name}: give --netType {theirs}")
        value = value.get("network")
    for key in ("state_dict", "model"):  # what others wrap a state dict in
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise Refused(f"{source} holds no weights: checkpoints, snapshots and state dicts do")
    state = {key.removeprefix("module."): tensor for key, tensor in value.items()}
    if "normalise.mean" in state:
        return state
    # torchvision's googlenet and inception_v3 rescale ImageNet's normalisation to this one as their first step.
    half = name in ("googlenet", "inception_v3")
    mean, std = ((0.5,) * 3, (0.5,) * 3) if half else (IMAGENET_MEAN, IMAGENET_STD)
    return {"normalise.mean": torch.tensor(mean), "normalise.std": torch.tensor(std)} | {
        f"body.{key}": tensor for key, tensor in state.items()
    }
