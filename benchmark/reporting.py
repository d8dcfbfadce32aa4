"""What logging costs: bars, log, losses and TensorBoard events of an epoch at 10 steps a second, without and with pictures."""

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
from report.report import Report
from report.tables import Tested
from run.run import Run
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
    print_table([
        ["an epoch of " + str(arguments.steps) + " steps", "seconds", f"of {whole:.0f} s"],
        ["bars", f"{steps:.3f}", f"{steps / whole:.2%}"],
        ["log, losses, events", f"{each:.3f}", f"{each / whole:.2%}"],
        ["once: all pictures, with the import of what draws them", f"{pictures:.3f}", f"{pictures / whole:.2%}"],
    ])  # fmt: skip
    figures = {
        "bars_seconds": steps,
        "epoch_seconds": each,
        "pictures_once_seconds": pictures,
        "epoch": whole,
    }
    timing.write(arguments.json, figures)


def measure(folder: Path, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    """Return the seconds of an epoch's bars, and of each epoch's end: the first one draws all pictures."""
    logger, report = Console(folder), Report(folder, {"LR": 0.1})
    logger.bars = True
    report.open(0)
    run = Run.__new__(Run)
    run.logger, run.latest = logger, None
    sums = Sums(torch.device("cpu"))
    scores = torch.rand(10_000, arguments.classes).softmax(1)
    labels = torch.randint(0, arguments.classes, (10_000,))
    names = [f"class {label}" for label in range(arguments.classes)]
    report.network_for_eval = Tested(
        scores,
        labels,
        np.arange(10_000),
        names,
        lambda i: torch.zeros(len(i), 3, 32, 32, dtype=torch.uint8),
    )
    started = time.perf_counter()
    with logger.bar("epoch", arguments.steps) as bar:
        for _ in range(arguments.steps):
            run.show_sums(sums)
            bar.update(128)
    steps = time.perf_counter() - started
    history: list[dict] = []
    epochs = []
    for epoch in range(1, arguments.epochs + 1):
        record = {"epoch": epoch, "step": epoch * arguments.steps, "lr": 0.1, "train_loss": 1.0, "test_loss": 1.0,
                  "train_top1": 50.0, "test_top1": 50.0, "seconds": 60.0, "images_per_second": 1280.0}  # fmt: skip
        history.append(record)
        losses = [1.0] * arguments.steps
        started = time.perf_counter()
        logger.step_losses(epoch, record["step"], losses)
        logger.record(record, history)
        report.epoch(record, history, losses, nn.Linear(2, 2), snapshot=True, last=False)
        epochs.append(time.perf_counter() - started)
    report.close()
    return steps, epochs


if __name__ == "__main__":
    main()
