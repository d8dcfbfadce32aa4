"""What a run's checkpoint must look like, looked at before anything of it is used.

A file can be whole and still be another program's, a later version's, or changed by hand: a tensor
of another shape would reach a kernel that does not look.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from base.archive import FORMAT, Plain, State
from model import Spec
from report.record import EpochRecord

# From a value to what is wrong with it, "" where nothing is.
Check = Callable[[Plain], str]


def problem(value: Plain) -> str:
    """Return what is wrong with a checkpoint's content first, with its field; "" for nothing."""
    if not isinstance(value, dict):
        return "it holds no fields"
    number = value.get("format")
    if type(number) is not int or number < 1:
        return f"format is {number!r}, no whole number from 1 on"
    if number > FORMAT:
        known = f"this program knows them up to {FORMAT}"
        return f"format is {number}, {known}: use the version that wrote it"
    return next(_problems(value, CONTENT, ""), "")


def _problems(value: State, fields: dict[str, Check], place: str) -> Iterator[str]:
    """Yield what is wrong with the fields of a dict: missing, unknown, or of a wrong value."""
    for name in fields:
        if name not in value and name not in OPTIONAL:
            yield f"{place}{name} is missing"
    for name, item in value.items():
        if name not in fields:
            yield f"{place}{name} is unknown"
        elif wrong := fields[name](item):
            yield f"{place}{name} {wrong}"


def _whole(value: Plain) -> str:
    is_whole = type(value) is int and 0 <= value < 1 << 53
    return "" if is_whole else f"is {value!r}, no whole number from 0 on"


def _percent(value: Plain) -> str:
    is_number = type(value) in (int, float) and 0 <= value <= 100
    return "" if value is None or is_number else f"is {value!r}, no percentage"


def _optional_whole(value: Plain) -> str:
    return "" if value is None else _whole(value)


def _tensors(value: Plain) -> str:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return "holds no named tensors"
    wrong = [name for name, tensor in value.items() if not isinstance(tensor, Tensor)]
    return f"holds {wrong[0]}, which is no tensor" if wrong else ""


def _tensor(value: Plain) -> str:
    return "" if isinstance(value, Tensor) and value.numel() == 1 else "is no tensor of one number"


def _optimizer(value: Plain) -> str:
    if not isinstance(value, dict):
        return "holds no states"
    for number, state in value.items():
        if type(number) is not int or not isinstance(state, dict):
            return f"holds {number!r}, which is no parameter's state"
        wrong = [name for name, v in state.items() if v is not None and not isinstance(v, Tensor)]
        if wrong:
            return f"holds {wrong[0]} of parameter {number}, which is no tensor"
    return ""


def _settings(value: Plain) -> str:
    if not isinstance(value, dict):
        return "holds no settings"
    wrong = [name for name, item in value.items() if type(item) not in (str, int)]
    if wrong:
        return f"holds {wrong[0]}, which is neither text nor a number"
    peak = value.get("peak", "0.1")
    return "" if _is_rate(peak) else f"holds a peak of {peak!r}, which is no learning rate"


def _is_rate(text: str | int) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _model(value: Plain) -> str:
    try:
        Spec.from_plain(value).refuse_wrong()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"describes no network ({error})"
    return ""


def _images(value: Plain) -> str:
    sides = value.values() if isinstance(value, dict) else [None]
    for side in sides:
        if not isinstance(side, dict) or not all(isinstance(text, str) for text in side.values()):
            return "holds no fingerprints"
        if "listing" not in side:
            return "lacks a listing's fingerprint"
    return "" if not value or {"train", "test"} <= value.keys() else "lacks a side"


def _history(value: Plain) -> str:
    if not isinstance(value, list):
        return "is no list of epochs"
    for number, record in enumerate(value, 1):
        try:
            if EpochRecord.from_json(record).epoch != number:
                return f"has epoch {record['epoch']} in place {number}"
        except (TypeError, ValueError, AttributeError) as error:
            return f"holds epoch {number}, which cannot be read ({error})"
    return ""


def _sums(value: Plain) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict) or value.keys() != {"values", "losses"}:
        return "is neither nothing nor values and losses"
    values, losses = value["values"], value["losses"]
    if not (isinstance(values, Tensor) and isinstance(losses, Tensor)):
        return "holds no tensors"
    shapes = values.dim() == 2 and values.shape[1] == 4 and losses.dim() == 2
    kinds = (values.dtype, losses.dtype) == (torch.float64, torch.float32)
    is_right = shapes and kinds and len(values) == len(losses) > 0
    return "" if is_right else "has tensors of other shapes or types"


def _progress(value: Plain) -> str:
    if not isinstance(value, dict):
        return "holds no fields"
    wrong = next(_problems(value, PROGRESS, ""), "")
    if wrong:
        return f"has a field that is wrong: {wrong}"
    if len(value["history"]) != value["epoch"]:
        return f"is at epoch {value['epoch']} with a history of {len(value['history'])}"
    if (value["best"] is None) != (value["best_epoch"] is None):
        return "has a best accuracy without its epoch, or the other way round"
    return ""


def _updater(value: Plain) -> str:
    if not isinstance(value, dict):
        return "holds no fields"
    wrong = next(_problems(value, UPDATER, ""), "")
    return f"has a field that is wrong: {wrong}" if wrong else ""


CONTENT: dict[str, Check] = {
    "format": _whole,
    "model": _model,
    "network": _tensors,
    "updater": _updater,
    "progress": _progress,
    "settings": _settings,
    "images": _images,
}
PROGRESS: dict[str, Check] = {
    "epoch": _whole,
    "batch": _whole,
    "step": _whole,
    "best": _percent,
    "best_epoch": _optional_whole,
    "history": _history,
    "sums": _sums,
}
UPDATER: dict[str, Check] = {
    "optimizer": _optimizer,
    "skipped": _whole,
    "in_a_row": _whole,
    "averaged": _tensors,
    "updates": _whole,
    "scale": _tensor,
    "good": _tensor,
}
# Only with averaged weights, or with fp16; images: from format 2 on.
OPTIONAL = {"averaged", "updates", "scale", "good", "images"}


def misfit(own: dict[str, Tensor], stored: dict[str, Tensor]) -> str:
    """Return the first tensor that has another name, shape or type than this run's; "" for none."""
    for name in [*own, *stored]:
        if name not in stored:
            return f"{name} is missing"
        if name not in own:
            return f"{name} is unknown"
        if own[name].shape != stored[name].shape or own[name].dtype != stored[name].dtype:
            kinds = [f"{[*tensor.shape]} {tensor.dtype}" for tensor in (stored[name], own[name])]
            return f"{name} is {kinds[0]}, not {kinds[1]}".replace("torch.", "")
    return ""
