"""What a run writes for TensorBoard: scalars, pictures, histograms, and what its runs are compared
by.
"""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from report.record import EpochRecord, Json

# Losses of single steps that an epoch adds.
MAX_POINTS = 500
# Images of the first batch.
SHEET = 16
SCALARS = {
    "train_loss": "train/loss",
    "test_loss": "test/loss",
    "train_top1": "train/top1",
    "test_top1": "test/top1",
    "train_top5": "train/top5",
    "test_top5": "test/top5",
    "test_map": "test/map",
    "lr": "lr",
    "images_per_second": "images_per_second",
}


class Events:
    """TensorBoard's files in the run's folder.

    step: updates done so far; what came later is forgotten.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # tensorboard's own switch: where TensorFlow is installed it would load it, which takes
        # seconds, prints, and raises errors of its own kind.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def first_batch(self, images: Tensor) -> None:
        """Show some of the first batch as the network sees it.

        images: (N, 3, S, S) uint8, or float of 0 to 255.
        """
        shown = images[:SHEET].detach().clamp(0, 255).to(torch.uint8).cpu()
        rows = [torch.cat(list(row), 2) for row in shown.split(4)]  # (3, S, <= 4 S)
        width = rows[0].shape[2]
        rows = [nn.functional.pad(row, [0, width - row.shape[2]]) for row in rows]
        self.writer.add_image("first batch", torch.cat(rows, 1), 1)

    def epoch(self, record: EpochRecord, losses: list[float]) -> None:
        """Add an epoch's scalars. losses: of its steps."""
        for name, tag in SCALARS.items():
            value = getattr(record, name)
            if value is not None:
                self.writer.add_scalar(tag, value, record.step)

        stride = max(1, -(-len(losses) // MAX_POINTS))
        first = record.step - len(losses) + 1
        for position in range(stride - 1, len(losses), stride):
            self.writer.add_scalar("train/loss of a step", losses[position], first + position)

    def histograms(self, network: nn.Module, step: int) -> None:
        """Add the histograms of all weights."""
        for name, parameter in network.named_parameters():
            self.writer.add_histogram(name, parameter.detach().float().cpu(), step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Add a picture that lies in a file."""
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def hyperparameters(self, options: Json, record: EpochRecord) -> None:
        """Write options and last metrics where TensorBoard's page of hyperparameters looks for
        them.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {
            n: value for n, value in options.items() if isinstance(value, (str, int, float, bool))
        }
        last = {"last/test_top1": record.test_top1, "last/test_loss": record.test_loss}
        known = {name: value for name, value in last.items() if value is not None}
        writer = self.writer._get_file_writer()

        for summary in hparams(plain, known):
            writer.add_summary(summary)
        for name, value in known.items():
            self.writer.add_scalar(name, value, record.step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
