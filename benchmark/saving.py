"""What a checkpoint costs: how long the copy holds training up, how long the writing takes beside
it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import model
import utils
from base.errors import clear_errors
from base.text import print_table
from benchmark import timing
from run import checkpoint
from training.updater import make_optimizer

DEFAULT_INTERVAL = 600  # seconds, main.py's --saveEvery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--netType", default="vgg16", help="network, with momentum (default: vgg16, 1.1 GB)"
    )
    parser.add_argument("--trials", type=int, default=5, help="(default: 5)")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    if arguments.trials < 1:
        parser.error("--trials: 1 at least")
    utils.keep_memory()
    with clear_errors():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    network = model.create(arguments.netType, 1000, 224)
    state = {
        "network": network.state_dict(),
        "optimizer": make_optimizer(network).state_dict()["state"],
    }
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        copies, writes, slowed = measure(state, Path(folder), arguments.trials)
        size = max(path.stat().st_size for path in Path(folder).iterdir())
    copy, write = statistics.median(copies[1:]), statistics.median(writes)
    share = 1 - (copy + write * (slowed - 1)) / DEFAULT_INTERVAL
    print_table(
        [
            [
                "checkpoint",
                "GB",
                "first copy s",
                "copy s",
                "writing s",
                "step beside it",
                "throughput",
            ],
            [
                arguments.netType,
                *(f"{v:.3g}" for v in (size / 1e9, copies[0], copy, write)),
                f"x {slowed:.2f}",
                f"{share:.2%}",
            ],
        ]
    )
    figures = {
        "bytes": size,
        "first_copy_seconds": copies[0],
        "copy_seconds": copy,
        "writing_seconds": write,
    }
    timing.write(
        arguments.json, figures | {"step_slowed_by": slowed, "throughput_kept_at_10_minutes": share}
    )


def measure(
    state: dict[str, object], folder: Path, trials: int
) -> tuple[list[float], list[float], float]:
    """Return seconds of each copy, of each write, and how much slower a matrix product is beside a
    write.
    """
    saver = checkpoint.Saver(folder, keep=1)
    copies, writes, beside = [], [], []
    alone = [product() for _ in range(20)]
    for trial in range(trials + 1):
        started = time.perf_counter()
        saver.save(trial, state)
        copies.append(time.perf_counter() - started)
        while saver.busy:
            beside.append(product())
        saver.wait()
        writes.append(time.perf_counter() - started - copies[-1])
    return copies, writes, statistics.median(beside) / statistics.median(alone)


def product() -> float:
    """Return the seconds of a matrix product on all cores."""
    started = time.perf_counter()
    _ = matrix @ matrix
    return time.perf_counter() - started


matrix = torch.ones(1500, 1500)

if __name__ == "__main__":
    main()
