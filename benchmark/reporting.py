"""What logging costs: bars, log, losses and TensorBoard events of an epoch at 10 steps a second,
without and with pictures.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

from base.text import print_table
from benchmark import timing
from report.console import Console
from report.record import EpochRecord, TestMetrics, TrainMetrics, join
from report.report import Report
from report.tables import Tested
from run.watch import Watch
from training.metrics import Sums

RATE = 10  # steps a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=600, help="of an epoch (default: 600, a minute)"
    )
    parser.add_argument("--epochs", type=int, default=5, help="(default: 5)")
    parser.add_argument("--classes", type=int, default=10, help="(default: 10)")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    stderr, stdout = sys.stderr, sys.stdout
    sys.stderr, sys.stdout = io.StringIO(), io.StringIO()
    try:
        with tempfile.TemporaryDirectory() as folder:
            steps, epochs = measure(Path(folder), arguments)
    finally:
        sys.stderr, sys.stdout = stderr, stdout
    whole = arguments.steps / RATE
    each, pictures = sorted(epochs[1:])[len(epochs) // 2 - 1], epochs[0]
    print_table(
        [
            ["an epoch of " + str(arguments.steps) + " steps", "seconds", f"of {whole:.0f} s"],
            ["bars", f"{steps:.3f}", f"{steps / whole:.2%}"],
            ["log, losses, events", f"{each:.3f}", f"{each / whole:.2%}"],
            [
                "once: all pictures, with the import of what draws them",
                f"{pictures:.3f}",
                f"{pictures / whole:.2%}",
            ],
        ]
    )
    figures = {
        "bars_seconds": steps,
        "epoch_seconds": each,
        "pictures_once_seconds": pictures,
        "epoch": whole,
    }
    timing.write(arguments.json, figures)


def measure(folder: Path, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    """Return the seconds of an epoch's bars, and of each epoch's end: the first one draws all."""
    cpu = torch.device("cpu")
    console, report = Console(folder), Report(folder, {"LR": 0.1})
    console.bars = True
    report.open(0)
    watch, sums = Watch(console, folder, cpu), Sums(cpu)
    started = time.perf_counter()
    with console.bar("epoch", arguments.steps) as bar:
        for _ in range(arguments.steps):
            watch.sums_beside_bar(sums)
            bar.update(128)
    steps = time.perf_counter() - started

    tested = tested_images(arguments.classes)
    history: list[EpochRecord] = []
    epochs = []
    for epoch in range(1, arguments.epochs + 1):
        history.append(record_of(epoch, epoch * arguments.steps, tested.metrics))
        losses = [1.0] * arguments.steps
        started = time.perf_counter()
        console.step_losses(epoch, history[-1].step, losses)
        console.show_epoch(history[-1], history)
        report.epoch(history, tested, losses, nn.Linear(2, 2), best=True, snapshot=True, last=False)
        epochs.append(time.perf_counter() - started)
    report.close()
    return steps, epochs


def tested_images(classes: int) -> Tested:
    """Return what a test of 10,000 images leaves."""
    count = 10_000
    scores = torch.rand(count, classes).softmax(1)
    labels = torch.randint(0, classes, (count,))
    names = [f"class {label}" for label in range(classes)]
    metrics = TestMetrics(1.0, 50.0, 90.0, 2.0, 50.0)

    def preview(indices: np.ndarray) -> torch.Tensor:
        return torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)

    return Tested(metrics, scores, labels, np.arange(count), names, str, preview)


def record_of(epoch: int, step: int, tested: TestMetrics) -> EpochRecord:
    """Return an epoch's record."""
    trained = TrainMetrics(1.0, 50.0, 90.0, 1280.0, 1.0, 59.0)
    others = {"lr": 0.1, "seconds": 60.0, "peak_memory_bytes": 0}
    return join(trained, tested, epoch=epoch, step=step, **others)


if __name__ == "__main__":
    main()
