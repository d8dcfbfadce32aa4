"""A network by its name, with normalisation as its first layer, and weights from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from base.archive import FORMAT, Plain, State
from base.errors import Refused
from base.fetch import digest_of, fetch
from models import NETWORKS, OURS, TIMM, weights
from models.weights import IMAGENET_MEAN, IMAGENET_STD

# Heads that a file may have and a network not.
AUXILIARY = ("body.aux1.", "body.aux2.", "body.AuxLogits.")
# What of a photograph is seen.
FITS = ("crop", "pad", "squash")
# Pixels a side.
MAX_SIDE = 1 << 16
# Field of Spec -> its key in a file.
KEYS = {
    "net_type": "netType",
    "classes": "classes",
    "image_size": "imageSize",
    "crop_size": "cropSize",
    "stem": "stem",
    "interpolation": "interpolation",
    "exif": "exif",
    "fit": "fit",
    "display_names": "titles",
}


@dataclass(frozen=True)
class Spec:
    """All that it takes to build a network again: name, class names, sizes in pixels, stem below 64
    pixels.

    exif: "apply" where photographs are turned as theirs says; fit: what of a photograph is seen, as
    of `transforms.Pipeline`. display_names: what the classes are
    called where they are shown, if not by their names.
    """

    net_type: str
    classes: tuple[str, ...]
    image_size: int
    crop_size: int
    stem: str = "fast"
    interpolation: str = "bilinear"
    exif: str = "ignore"
    display_names: tuple[str, ...] = ()
    fit: str = "crop"

    def to_plain(self) -> State:
        """Return what a file holds."""
        values = {key: getattr(self, name) for name, key in KEYS.items()}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_plain(cls, plain: State) -> "Spec":
        """Read what a file holds. Raises KeyError, TypeError."""
        values: State = {name: plain[key] for name, key in KEYS.items() if key in plain}
        for name in ("classes", "display_names"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)

    def refuse_wrong(self) -> None:
        """Raise ValueError for a field that no run writes."""
        texts = (self.net_type, self.stem, self.interpolation, self.exif, self.fit)
        if not all(isinstance(text, str) for text in (*texts, *self.classes, *self.display_names)):
            raise ValueError("a name in it is no text")
        if not all(type(size) is int and 0 < size < MAX_SIDE for size in self._sizes):
            raise ValueError(f"its sizes are {self._sizes}")
        choices = {
            "stem": (self.stem, ("fast", "fine")),
            "interpolation": (self.interpolation, ("bilinear", "bicubic")),
            "exif": (self.exif, ("ignore", "apply")),
            "fit": (self.fit, FITS),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"its {name} is {value!r}")
        if len(self.display_names) not in (0, len(self.classes)):
            raise ValueError("it has another number of titles than of classes")

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.image_size, self.crop_size


# Logits (N, K), or a tuple of them, the main head's first.
Heads = Any


class Normalise(nn.Module):
    """uint8 pixels to floats of zero mean and unit deviation. mean, std: (3,), in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) uint8, or float in [0, 1] -> (N, 3, S, S) of the buffers' float
        type.
        """
        unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        scale, shift = unit / self.std, self.mean / self.std
        return (images.to(self.mean.dtype) * scale[:, None, None]).sub_(shift[:, None, None])


class Network(nn.Module):
    """Normalise, then the named network.

    forward gives logits alone; `heads` gives every head's, for training.
    """

    def __init__(self, body: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.normalise: Normalise = Normalise()
        self.body = body
        self.spec = spec
        # Batch norms whose statistics do not change.
        self.frozen: list[nn.Module] = []

    def train(self, mode: bool = True) -> "Network":
        """Switch between training and testing; what is frozen stays as in testing."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, heads: bool = False) -> Heads:
        """images: (N, 3, S, S) uint8 -> logits (N, K); with heads a tuple of them, the main head's
        first.
        """
        logits = self.body(self.normalise(images))
        every = tuple(logits) if isinstance(logits, tuple) else (logits,)
        return every if heads else every[0]


def create(
    name: str,
    classes: int | Sequence[str],
    size: int,
    *,
    stem: str = "fast",
    image_size: int = 0,
    **others: Any,
) -> Network:
    """Build the network called `name` for size x size pixels.

    classes: how many, or their names; others: of Spec.

    Raises Refused for an unknown name, fewer than 2 classes and images too small for it.
    """
    if name not in NETWORKS:
        raise Refused(f"unknown network '{name}': allowed are {', '.join(NETWORKS)}")
    entry = NETWORKS[name]
    if isinstance(classes, int):
        classes = [str(label) for label in range(classes)]
    if len(classes) < 2:
        found = f"{len(classes)}: {', '.join(classes)}"
        raise Refused(f"a classifier needs at least 2 classes, got {found}")
    if size < entry.smallest:
        least = f"at least {entry.smallest} pixels a side"
        raise Refused(f"{name} needs images of {least}, got {size}", limit="crop size")

    # A table names builders as text, so that reading it imports no torch.
    module, function, *first = entry.builder.split(":")
    build = getattr(import_module(f"models.{module}"), function)
    try:
        body = build(*first, len(classes), size, stem)
    except Refused:
        raise
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _refused_size(name, size, error) from None

    return Network(body, Spec(name, tuple(classes), image_size or size, size, stem, **others))


def _refused_size(name: str, size: int, error: Exception) -> Refused:
    reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
    return Refused(
        f"{name} cannot take images of {size} x {size} pixels: {reason}", limit="crop size"
    )


def refuse_size(network: Network) -> None:
    """Raise Refused where the network's size lets it be built, but not trained.

    Computes nothing.
    """
    spec = network.spec
    state = {name: value.to("meta") for name, value in network.state_dict().items()}
    shape = (2, 3, spec.crop_size, spec.crop_size)
    images = torch.empty(shape, dtype=torch.uint8, device="meta")

    try:
        with torch.no_grad():
            functional_call(network.train(), state, (images,), {"heads": True})
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _refused_size(spec.net_type, spec.crop_size, error) from None


def load(path: str) -> Network:
    """Return the network of a weights file or a checkpoint, in testing mode. Raises Refused."""
    value = weights.read(path)
    spec = spec_of(value, path)
    if spec is None:
        raise Refused(
            f"{path} is no weights file of this suite: it names no network and no classes. Train "
            "with it by main.py --retrain, which writes one"
        )
    network = build(spec)
    if without_heads(network, load_weights(network, value, path)):
        raise Refused(f"{path} does not fit {spec.net_type}: its last layer is of other classes")
    return network.eval()


def without_heads(network: Network, names: list[str]) -> list[str]:
    """Return the names that are not of auxiliary heads, which only training uses."""
    heads = tuple(f"body.{prefix}." for prefix in NETWORKS[network.spec.net_type].heads)
    return [name for name in names if not (heads and name.startswith(heads))]


def build(spec: Spec) -> Network:
    """Return the network that a file describes, with drawn weights. Raises Refused."""
    return create(
        spec.net_type,
        spec.classes,
        spec.crop_size,
        stem=spec.stem,
        image_size=spec.image_size,
        interpolation=spec.interpolation,
        exif=spec.exif,
        fit=spec.fit,
        display_names=spec.display_names,
    )


def spec_of(value: Plain, path: str) -> Spec | None:
    """Return what a file of ours says of its network, None for others'. Raises Refused where that
    cannot be.
    """
    plain = weights.spec_in(value)
    if plain is None:
        return None
    number = value.get("format", 1)
    if type(number) is not int or number > FORMAT:
        known = f"this program knows formats up to {FORMAT}"
        raise Refused(f"{path} has format {number!r}, {known}: use the version that wrote it")
    try:
        if not isinstance(plain["classes"], list):
            raise TypeError("its classes are no list")
        spec = Spec.from_plain(plain)
        spec.refuse_wrong()
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path} is no weights file of this suite: {error}") from None
    return spec


def published_weights(name: str) -> str:
    """Return the file of torchvision's or timm's published weights for a network, fetched if it is
    missing.

    Raises Refused.
    """
    if name.startswith(TIMM):
        return import_module("models.from_timm").weights_file(name)
    from torchvision.models import get_model_weights

    theirs = NETWORKS[name].torchvision_name
    if not theirs:
        known = ", ".join(other for other, entry in OURS.items() if entry.torchvision_name)
        raise Refused(
            f"there are no published weights for {name}; there are for {known} and torchvision's "
            "own"
        )

    # The first published ones are those of the paper's recipe.
    found = next(iter(get_model_weights(theirs)))
    path = Path(torch.hub.get_dir(), "checkpoints", found.url.rsplit("/", 1)[1])
    digest = path.stem.rsplit("-", 1)[1]
    if not path.exists():
        fetch(found.url, path, digest, "sha256")
    elif not digest_of(path, "sha256").startswith(digest):
        wrong = f"{path} has a SHA-256 that does not begin with {digest}"
        raise Refused(f"{wrong}: remove it, it is then fetched again")

    return str(path)


def parameter_count(network: nn.Module) -> int:
    """Count the parameters that train or could."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: Network) -> int:
    """Count the multiply-adds of an image in testing: those of convolutions and matrix products,
    nothing is computed.
    """
    size = network.spec.crop_size
    state = {name: value.to("meta") for name, value in network.state_dict().items()}
    image = torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta")
    training = network.training
    network.eval()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(network, state, (image,))
    network.train(training)
    return counter.get_total_flops() // 2


def weight_layers(network: Network) -> list[nn.Module]:
    """Return the modules with parameters of their own, in the order in which they were made."""
    modules = network.body.modules()
    return [module for module in modules if list(module.parameters(recurse=False))]


def freeze(network: Network, what: str) -> None:
    """Freeze all weights but those of the last layers, and the statistics of their batch norms.

    what: "features", all but the classifier (where a network has no part of that name, all but its
    last layer), or how many last layers train. Raises Refused where nothing or everything would
    train.
    """
    layers = weight_layers(network)
    if what == "features":
        head = getattr(network.body, "classifier", None)
        own = set(head.modules()) if isinstance(head, nn.Module) else set(layers[-1:])
        training = [layer for layer in layers if layer in own]
    else:
        training = layers[-int(what) :]
    if not 0 < len(training) < len(layers):
        known = f"{network.spec.net_type} has {len(layers)} layers with weights"
        raise Refused(f"{what} cannot be what trains or is frozen: {known}", limit="frozen layers")

    for layer in layers:
        if layer in training:
            continue
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            network.frozen.append(layer)


def load_weights(network: Network, value: Plain, source: str) -> list[str]:
    """Fill `network` from a checkpoint, a snapshot or a bare state dict; return the names of what
    is reinitialised.

    The last layers are where the file has another number of classes, auxiliary heads where it has
    none. Mean and std come along; a file without them is taken as torchvision's. Raises Refused,
    with names and shapes, for what does not fit, and for weights that are not finite.
    """
    spec, own = network.spec, network.state_dict()
    state = weights.state_of(value, source, spec.net_type, own)
    other_shape = [name for name in own if name in state and own[name].shape != state[name].shape]
    fresh = [
        n
        for n in other_shape
        if n.startswith("body.") and _is_last(own[n], state[n], len(spec.classes))
    ]
    misfits = _misfits(own, state, spec.net_type)
    misfits += [_shapes(n, state[n], own[n]) for n in other_shape if n not in fresh]
    # Four lines name the cause; eighty would hide it.
    if misfits:
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        other = f"{source} does not fit {spec.net_type}: {'; '.join(misfits[:4])}{more}"
        raise Refused(other, limit="network" if more else "")

    fresh += [name for name in own if name not in state]
    known = {n: tensor for n, tensor in state.items() if n in own and n not in fresh}
    network.load_state_dict(own | _fitting(own, known, source))
    return fresh


def _fitting(own: dict[str, Tensor], known: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors in the network's own types. Raises Refused for what is lost on the way."""
    fitting = {}
    for name, tensor in known.items():
        wanted = own[name].dtype
        if tensor.dtype == wanted:
            cast = tensor
        elif tensor.is_floating_point() and wanted.is_floating_point and tensor.dtype.itemsize > 1:
            cast = tensor.to(wanted)
        else:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise Refused(f"{source}: {name} is {kind}, not {str(wanted).removeprefix('torch.')}")
        if not torch.isfinite(cast).all():
            raise Refused(f"{source} holds weights that are not finite: {name}")
        fitting[name] = cast
    deviation = fitting.get("normalise.std")
    if deviation is not None and not (deviation > 0).all():
        raise Refused(f"{source}: normalise.std is not above 0")
    return fitting


def _misfits(own: dict[str, Tensor], state: dict[str, Tensor], net_type: str) -> list[str]:
    """Return a line for each weight that the file lacks or the network does not have, auxiliary
    heads aside.
    """
    heads = tuple(f"body.{prefix}." for prefix in NETWORKS[net_type].heads)
    missing = [name for name in own if name not in state and not name.startswith(heads)]
    unknown = [name for name in state if name not in own and not name.startswith(AUXILIARY)]
    return [f"{name} is missing" for name in missing] + [f"{name} is unknown" for name in unknown]


def _shapes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} is {[*given.shape]}, not {[*own.shape]}"


def _is_last(own: Tensor, given: Tensor, classes: int) -> bool:
    """True for a weight or bias whose first size is the number of classes and whose other sizes
    agree.
    """
    if own.dim() == 0 or own.shape[0] != classes:
        return False
    return own.dim() == given.dim() and own.shape[1:] == given.shape[1:]
