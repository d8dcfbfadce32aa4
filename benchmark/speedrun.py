"""Seconds of training until a network is right on so many of the test images: 99 % of MNIST's, 92 %
of Fashion-MNIST's, 94 % of CIFAR-10's.

Each seed is a run of main.py, as anyone starts it, of a length that is fixed beforehand. Counted is
training, from the first step on with what a first step costs, data included; testing and the start
of the program are not. A record stands where the mean over the seeds of the last epoch's test top-1
reaches the goal; its figure is the median of the seconds. Options of main.py given here go before
the record's own, to try out others:

    python benchmark/speedrun.py --dataset mnist --seeds 3 --LR 0.3
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from base.errors import Failed, Refused, clear_errors
from base.text import print_table
from benchmark import timing


@dataclass(frozen=True)
class Record:
    """goal: test top-1, %; options: of main.py, which reach it."""

    goal: float
    options: str


RECORDS = {
    "mnist": Record(
        99.0,
        "--netType resnet9xs --nEpochs 1 --limit 36000 --batchSize 256 --LR 0.5 "
        "--labelSmoothing 0.1 --augment none",
    ),
    "fashionmnist": Record(
        92.0,
        "--netType resnet9xs --nEpochs 4 --batchSize 256 --LR 0.5 "
        "--labelSmoothing 0.1 --augment flip --flipTest",
    ),
    # Never run here: these images were not to be had.
    "cifar10": Record(
        94.0,
        "--netType resnet9 --stem fine --nEpochs 20 --batchSize 512 --LR 0.4 "
        "--augment pad:4,crop,flip,cutout:8 --flipTest",
    ),
}
SHARED = "--schedule onecycle --nesterov --logger none --snapshot 0"


@dataclass(frozen=True)
class Seed:
    """What one run came to. top1: of the last epoch, %."""

    seed: int
    top1: float
    seconds: float
    epochs: int
    images_per_second: float


def run(words: list[str], seed: int) -> Seed:
    """Train once. Raises Refused and Failed where main.py does."""
    with tempfile.TemporaryDirectory() as folder:
        place = ["--manualSeed", str(seed), "--expDir", folder, "--expID", "run"]
        command = [sys.executable, str(ROOT / "main.py"), *words, *place]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            ended = Refused if result.returncode == 2 else Failed
            raise ended(result.stderr.strip().removeprefix("main.py: error: "))
        (log,) = Path(folder).glob("*/run/log.jsonl")
        epochs = [json.loads(line) for line in log.read_text().splitlines()]

    seconds = sum(epoch["data_seconds"] + epoch["compute_seconds"] for epoch in epochs)
    rate = statistics.median(epoch["images_per_second"] for epoch in epochs)
    return Seed(seed, epochs[-1]["test_top1"], seconds, len(epochs), rate)


def arguments_of(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the benchmark's own arguments, and main.py's."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain, allow_abbrev=False)
    parser.add_argument("--dataset", choices=[*RECORDS], default="mnist", help="(default: mnist)")
    parser.add_argument("--seeds", type=int, default=5, help="runs, seeds from 1 (default: 5)")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments, others = arguments_of(argv)
    record = RECORDS[arguments.dataset]
    words = ["--dataset", arguments.dataset, *shlex.split(f"{record.options} {SHARED}"), *others]
    print(shlex.join(["python", "main.py", *words]), flush=True)
    seeds = []
    for seed in range(1, max(1, arguments.seeds) + 1):
        seeds.append(run(words, seed))
        print(f"seed {seed}: {seeds[-1].top1:.2f} % in {seeds[-1].seconds:.2f} s", flush=True)

    found = summary(record, seeds)
    heading = ["goal %", "mean top-1 %", "deviation", "median s", "images/s", "reached"]
    figures = [f"{found[name]:.4g}" for name in ("goal", "top1", "deviation", "seconds", "rate")]
    print_table([heading, [*figures, "yes" if found["reached"] else "no"]])
    described = {"dataset": arguments.dataset, "run": shlex.join(["python", "main.py", *words])}
    timing.write(arguments.json, described | found)


def summary(record: Record, seeds: list[Seed]) -> dict[str, Any]:
    """Return what the seeds came to together: mean and deviation of top-1, %, median seconds and
    images/s.
    """
    accuracies = [seed.top1 for seed in seeds]
    mean = statistics.fmean(accuracies)
    return {
        "goal": record.goal,
        "reached": mean >= record.goal,
        "top1": mean,
        "deviation": statistics.stdev(accuracies) if len(seeds) > 1 else 0.0,
        "seconds": statistics.median(seed.seconds for seed in seeds),
        "rate": statistics.median(seed.images_per_second for seed in seeds),
        "seeds": [asdict(seed) for seed in seeds],
    }


if __name__ == "__main__":
    with clear_errors():
        main()
