"""timm's classification networks, as --netType timm:NAME, with the sizes, mean and deviation of
their published weights.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base import archive
from base.errors import Refused
from models import TIMM
from models.layers import use_average_pools

KEPT = Path("~/.cache/multi-gpu-torch/timm").expanduser()


@dataclass(frozen=True)
class Published:
    """What timm says of a network's published weights: pixels a side, share of the side that
    testing crops, mean and deviation of each channel in [0, 1].
    """

    side: int
    crop_share: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published(name: str) -> Published:
    """Return what the weights of `timm:NAME` were made for. Raises Refused."""
    about = _timm(name).get_pretrained_cfg(name.removeprefix(TIMM))
    return Published(about.input_size[-1], about.crop_pct, tuple(about.mean), tuple(about.std))


def build(name: str, classes: int, size: int, stem: str) -> nn.Module:
    """Return timm's network, untrained, for size x size pixels. stem: not used. Raises Refused."""
    timm = _timm(name)
    short = name.removeprefix(TIMM)
    about = timm.get_pretrained_cfg(short)
    more: dict[str, Any] = {}
    # Transformers are built for one size.
    if about.fixed_input_size and size != about.input_size[-1]:
        more["img_size"] = size
    try:
        network = timm.create_model(short, pretrained=False, num_classes=classes, **more)
    except TypeError as error:
        raise Refused(
            f"{TIMM}{short} cannot be built for {size} pixels: {error}", limit="crop size"
        ) from None
    return use_average_pools(network)


def weights_file(name: str) -> str:
    """Return a file of the published weights, fetched by timm where it is missing.

    Raises Refused where they cannot be had.
    """
    path = KEPT / f"{name.removeprefix(TIMM)}.pt"
    if path.exists():
        return str(path)
    timm, about = _timm(name), published(name)
    try:
        network = timm.create_model(name.removeprefix(TIMM), pretrained=True)
    # What timm fetches with raises errors of its own.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise Refused(
            f"the published weights of {name} cannot be had: {reason}; with a file of them give "
            "--retrain FILE"
        ) from None
    state: dict[str, Tensor] = {f"body.{key}": value for key, value in network.state_dict().items()}
    state |= {"normalise.mean": torch.tensor(about.mean), "normalise.std": torch.tensor(about.std)}
    path.parent.mkdir(parents=True, exist_ok=True)
    archive.write(path, state)
    return str(path)


def _timm(name: str) -> Any:
    """Return the library. Raises Refused where it or the network is missing."""
    short = name.removeprefix(TIMM)
    try:
        import timm
    except ImportError:
        way = "pip install timm, or pip install -e '.[timm]'"
        raise Refused(f"--netType {TIMM}{short} needs timm: {way}") from None
    if not timm.is_model(short):
        near = difflib.get_close_matches(short, timm.list_models(), 1)
        hint = f"; did you mean '{TIMM}{near[0]}'?" if near else ""
        raise Refused(f"timm has no network '{short}'{hint}")
    return timm
