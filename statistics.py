"""Channel mean and standard deviation of a data set's pixels, cached as JSON.

`python statistics.py --help` runs it.

This name is the standard library's too, and torch's compiler, triton and pytest's plugins import
that one, from processes whose first path is this folder. So whatever this file lacks it hands on to
the standard module, it imports nothing but the standard library at its top, and our own code loads
it by its path (`utils.load_ours`).
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterable
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any


@functools.cache
def _standard() -> Any:
    spec = PathFinder.find_spec("statistics", [os.path.dirname(os.__file__)])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def __getattr__(name: str) -> Any:
    return getattr(_standard(), name)


def measure(batches: Iterable[Any]) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over all pixels, of values in [0, 1].

    batches: of (N, 3, S, S) uint8. Sums are of whole numbers, so the result does not depend on
    their order.
    """
    import torch

    count = 0
    total = torch.zeros(3, dtype=torch.int64)
    squares = torch.zeros(3, dtype=torch.int64)

    for images in batches:
        channels = images.transpose(0, 1).flatten(1)  # (3, pixels)
        count += channels.shape[1]
        for channel in range(3):
            # 256 levels: a histogram has all that mean and deviation need, exactly.
            histogram = torch.bincount(channels[channel].flatten(), minlength=256).cpu()
            levels = torch.arange(256)
            total[channel] += (histogram * levels).sum()
            squares[channel] += (histogram * levels * levels).sum()
    if not count:
        raise ValueError("no images to measure")
    mean = [value / count for value in total.tolist()]
    variance = [
        max(0.0, square / count - m * m) for square, m in zip(squares.tolist(), mean, strict=True)
    ]
    return [m / 255 for m in mean], [max(math.sqrt(v), 1.0) / 255 for v in variance]


def cached(
    path: str, key: str, compute: Callable[[], tuple[list[float], list[float]]]
) -> tuple[list[float], list[float]]:
    """Return what the JSON file `path` holds for `key`, computing and adding it where it is missing
    or unreadable.
    """
    try:
        with open(path) as file:
            known = json.load(file)
        mean, std = known[key]["mean"], known[key]["std"]
        if (
            len(mean) == len(std) == 3
            and all(isinstance(v, float) and math.isfinite(v) for v in mean + std)
            and min(std) > 0
        ):
            return mean, std
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = known if isinstance(locals().get("known"), dict) else {}

    mean, std = compute()
    known[key] = {"mean": mean, "std": std}
    _replace(path, known)
    return mean, std


def _replace(path: str, value: object) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as file:
        json.dump(value, file, indent=2)
    os.replace(temporary, path)


def main() -> None:
    """Print mean and standard deviation for the options of main.py."""
    import configs
    import opts
    from base.errors import clear_errors

    with clear_errors():
        options = opts.parse()
        mean, std = configs.statistics(options, *configs.open_both(options)[:1])
        print(json.dumps({"mean": mean, "std": std}))


if __name__ == "__main__":
    main()
