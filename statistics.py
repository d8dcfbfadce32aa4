"""Channel mean and standard deviation of a data set's pixels, cached as JSON.

`python statistics.py --help` runs it.

This name is the standard library's too, and torch's compiler, triton and pytest's plugins import
that one, from processes whose first path is this folder. So whatever this file lacks it hands on to
the standard module, it imports nothing but the standard library at its top, and our own code loads
it by its path (`utils.load_ours`).
"""

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterable
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

# Of a channel, in grey levels: images of one colour have no deviation to divide by.
MIN_STD = 1.0


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
    return [m / 255 for m in mean], [max(math.sqrt(v), MIN_STD) / 255 for v in variance]


def cached(
    path: str, key: str, compute: Callable[[], tuple[list[float], list[float]]]
) -> tuple[list[float], list[float]]:
    """Return what the JSON file `path` holds for `key`, computing and adding it where it is missing
    or unreadable.
    """
    from base.files import read_text, set_aside, write_json

    known: Any = {}
    try:
        known = json.loads(read_text(path))
    except OSError:
        pass
    except (ValueError, RecursionError):
        known = None
    # Spoilt, or not of this program: it is kept, for whoever wants it.
    if not isinstance(known, dict):
        known = {}
        with contextlib.suppress(OSError):
            set_aside(path)
    values: Any = known.get(key)
    if _is_whole(values):
        return values["mean"], values["std"]

    mean, std = compute()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_json(path, known | {key: {"mean": mean, "std": std}})
    return mean, std


def _is_whole(values: Any) -> bool:
    """True for what `measure` can have returned."""
    if not (isinstance(values, dict) and values.keys() == {"mean", "std"}):
        return False
    for name, low in (("mean", 0.0), ("std", MIN_STD / 255)):
        numbers = values[name]
        if not (isinstance(numbers, list) and len(numbers) == 3):
            return False
        # A deviation of nearly nothing would make every pixel infinite.
        if not all(isinstance(v, float) and low <= v <= 1 for v in numbers):
            return False
    return True


def main() -> None:
    """Print mean and standard deviation for the options of main.py."""
    import configs
    import opts
    from base import process
    from base.errors import clear_errors

    with clear_errors():
        options = opts.parse(prog="statistics.py")
        mean, std = configs.statistics(options, *configs.open_both(options)[:1])
        print(json.dumps({"mean": mean, "std": std}))
        process.refuse_lost()


if __name__ == "__main__":
    from base import process

    process.begin()
    main()
