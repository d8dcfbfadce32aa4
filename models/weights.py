"""Files of weights: this suite's own, and those that other programs write.

Nothing in a file is ever run: pickles are read as plain data, by torch's `weights_only`.
"""

import argparse
import json
import os
import pickle
from collections import Counter
from collections.abc import Collection
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from base import archive
from base.archive import Damaged, Plain, State, refuse_special
from base.errors import Refused
from base.text import printable
from models import TIMM

# torchvision's, of pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What others wrap a state dict in; averaged weights, which are what was tested, before the others.
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "network")
# The magic number of a zip, and of torch's format of before 1.6, a pickle of protocol 2.
ZIP, PICKLE = b"PK", b"\x80\x02"
# Bytes of a safetensors header: the format's own limit.
MAX_HEADER = 100_000_000


def read(path: str) -> Plain:
    """Return what a file of weights holds: ours, verified, or others', read as plain data.

    Raises Refused.
    """
    try:
        refuse_special(path)
        with open(path, "rb") as file:
            head = file.read(9)
        if head.startswith(PICKLE):
            # Published so until 2020 and never written anew: vgg, googlenet and many others.
            return _load_plain(path)
        if _is_safetensors(head, os.path.getsize(path)):
            return _read_safetensors(path)
        archive.verify(path)
        return _load_plain(path)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except Damaged as error:
        raise Refused(str(error)) from None


def _load_plain(path: str) -> Plain:
    """Return what torch.save wrote. Raises Refused for anything but numbers, text and tensors."""
    try:
        # torchvision's reference and timm keep their options, one such object, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower().replace("globals", ""):
            raise _damaged(path, error) from None
        save = "torch.save(network.state_dict(), FILE) where it was made writes what can be"
        raise Refused(f"{path} holds more than weights, which is not read: {save}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> Damaged:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    # torch's advice is to run what is in the file.
    if "weights_only" in reason:
        reason = "it cannot be read as plain data"
    return Damaged(f"{path} is damaged or no file of weights: {printable(reason)}")


def _is_safetensors(head: bytes, length: int) -> bool:
    """True for the format's head: the length of its JSON, and its first brace."""
    header = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and 2 <= header <= min(length - 8, MAX_HEADER)


def _read_safetensors(path: str) -> Plain:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise Refused(f"{path}: safetensors is not installed: pip install -e '.[export]'") from None

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _ours(state, about) if about.get("program") == "multi-gpu-torch" else state
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from None


def _ours(state: dict[str, Tensor], about: dict[str, str]) -> State:
    """Return an export of our own as a file of weights is: `model` says what network it is."""
    spec: State = {name: json.loads(about[name]) for name in ("classes", "titles")}
    for name in ("netType", "stem", "interpolation", "exif", "fit"):
        if name in about:
            spec[name] = about[name]
    for name in ("imageSize", "cropSize"):
        spec[name] = int(about[name])
    return {"model": spec, "network": state}


def spec_in(value: Plain) -> State | None:
    """Return what a file of ours says of its network, None for others'."""
    if not isinstance(value, dict):
        return None
    spec = value.get("model")
    return spec if isinstance(spec, dict) and "netType" in spec else None


def state_of(
    value: Plain, source: str, name: str, wanted: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the state dict in a loaded file, by our names.

    name: the network's; wanted: its own names, by which a prefix is found.

    Raises Refused where there is none or it must not fit.
    """
    spec = spec_in(value)
    if spec is not None:
        if spec["netType"] != name:
            raise Refused(f"{source} holds {spec['netType']}, not {name}", limit="network")
        updater = value.get("updater")
        averaged = updater.get("averaged") if isinstance(updater, dict) else None
        value = averaged if isinstance(averaged, dict) and averaged else value.get("network")

    state = without_prefix(_unwrapped(value, source), wanted)
    if "normalise.mean" in state:
        return state

    # torchvision's googlenet and inception_v3 rescale ImageNet's normalisation to this one as their
    # first step. Their papers' input is in [-1, 1]; torchvision's weights expect it so.
    half = name in ("googlenet", "inception_v3")
    mean, std = ((0.5,) * 3, (0.5,) * 3) if half else (IMAGENET_MEAN, IMAGENET_STD)
    if name.startswith(TIMM):
        about = import_module("models.from_timm").published(name)
        mean, std = about.mean, about.std
    ours = {"normalise.mean": torch.tensor(mean), "normalise.std": torch.tensor(std)}
    return ours | {f"body.{key}": tensor for key, tensor in state.items()}


def _unwrapped(value: Plain, source: str) -> dict[str, Tensor]:
    """Return the state dict that others wrap. Raises Refused where there is none."""
    inner: Any = value
    while isinstance(inner, dict):
        found = next((inner[key] for key in WRAPPERS if _holds_tensors(inner.get(key))), None)
        if not found:
            break
        inner = found

    # How often weights were averaged stands beside them.
    state = {k: v for k, v in inner.items() if k != "n_averaged"} if isinstance(inner, dict) else {}
    named = all(isinstance(name, str) for name in state)
    if not state or not named or not all(isinstance(v, Tensor) for v in state.values()):
        raise Refused(f"{source} holds no weights: checkpoints, snapshots and state dicts do")
    for name, tensor in state.items():
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized
        if not is_plain or tensor.device.type != "cpu":
            raise Refused(f"{source}: {name} is no plain tensor: save it dense and on the CPU")
        # A few bytes may claim to be a million million numbers.
        if tensor.numel() * tensor.element_size() > max(64, tensor.untyped_storage().nbytes()):
            raise Refused(f"{source}: {name} is larger than what is stored of it")
    return state


def _holds_tensors(value: Plain) -> bool:
    """True for a dict with tensors in it, or in a dict of its own."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(item, Tensor) or _holds_tensors(item) for item in value.values())


def without_prefix(state: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Return a state dict without what wrappers put before its names: `module.`, `_orig_mod.`,
    `model.`, or any other that most of the wanted names have here.
    """
    # The body's names are others' names for the same.
    known = {name.removeprefix("body.") for name in wanted} | set(wanted)
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        cut = next((n for n in range(len(parts)) if ".".join(parts[n:]) in known), None)
        if cut is not None:
            prefixes[".".join(parts[:cut])] += 1
    if not prefixes:
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}

    prefix = prefixes.most_common(1)[0][0]
    start = f"{prefix}." if prefix else ""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.removeprefix(start)
        if plain in result:
            raise Refused(f"{plain} is there twice, once as {start}{plain}: leave one in the file")
        result[plain] = tensor
    return result
