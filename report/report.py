"""What a run draws of itself, beside its log: TensorBoard events, curves, confusion matrix, figures a class, errors.

Pictures are drawn when the last ones cost less than 1 % of the time since, and at the end: they never slow a run down.
A picture or event that cannot be written is not worth a run: it is said once, and training goes on.
"""

import contextlib
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.files import whole_file
from base.text import printable
from report.tables import Tested
from training import metrics

FIRST = 5.0  # seconds that the first pictures may cost, what draws them has to be loaded
SHARE = 0.01  # of a run's time that pictures may take
ERRORS = 24  # images on the sheet of errors
POINTS = 500  # losses of single steps that an epoch adds to TensorBoard
SHEET = 16  # images of the first batch
SHOWN = ("train_loss", "test_loss", "train_top1", "test_top1", "train_top5", "test_top5", "test_map", "lr", "images_per_second")


class Report:
    """Writes into the run's folder.

    options: what TensorBoard compares runs by; bare: write nothing at all; histograms: add those of all weights.
    """

    def __init__(self, folder: Path, options: dict[str, Any], *, bare: bool = False, histograms: bool = False) -> None:
        self.folder, self.options, self.bare, self.histograms = folder, options, bare, histograms
        self.tested: Tested | None = None
        self.board: Any = None
        self.drawn, self.cost = time.monotonic(), FIRST

    def open(self, step: int) -> None:
        """Begin, or go on after `step` updates: TensorBoard forgets what came later."""
        if self.bare:
            return
        with self._harmless():
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def first_batch(self, images: Tensor) -> None:
        """Show some of the first batch as the network sees it. images: (N, 3, S, S) uint8, or float of 0 to 255."""
        if self.board is not None:
            with self._harmless():
                shown = images[:SHEET].detach().clamp(0, 255).to(torch.uint8).cpu()
                rows = [torch.cat(list(row), 2) for row in shown.split(4)]  # (3, S, <= 4 S)
                width = rows[0].shape[2]
                rows = [torch.nn.functional.pad(row, [0, width - row.shape[2]]) for row in rows]
                self.board.add_image("first batch", torch.cat(rows, 1), 1)

    def epoch(
        self, record: dict[str, Any], history: list[dict[str, Any]], losses: list[float], network: Any, *,
        snapshot: bool, last: bool,
    ) -> None:  # fmt: skip
        """Show an epoch that has ended. losses: of its steps; snapshot, last: the epoch has a snapshot, is the last one."""
        if self.bare:
            return
        with self._harmless():
            self._events(record, losses, network)
        now = time.monotonic()
        if last or self.cost < SHARE * (now - self.drawn):
            self.draw(record, history, confusion=snapshot or last)
            self.drawn, self.cost = time.monotonic(), time.monotonic() - now
        if last and self.board is not None:
            with self._harmless():
                self._hyperparameters(record)
                self.board.flush()

    def draw(self, record: dict[str, Any], history: list[dict[str, Any]], *, confusion: bool) -> None:
        """Write all pictures and tables of an epoch, or of a test alone."""
        if self.bare:
            return
        from report import pictures

        with self._harmless():
            if history:
                pictures.curves(history, self.folder / "curves.png")
        if self.tested is None:
            return
        tested = self.tested
        with self._harmless():
            self._classes(tested)
        with self._harmless():
            matrix = metrics.confusion_matrix(tested.scores.argmax(1), tested.labels, len(tested.classes)).numpy()
            self._confusion_table(matrix, tested.classes)
            if confusion:
                path = self.folder / (f"confusion_{record['epoch']}.png" if "epoch" in record else "confusion.png")
                pictures.confusion(matrix, tested.classes, path, _title(record))
                self._picture("confusion", path, record)
        with self._harmless():
            self._errors(tested, pictures.sheet)

    def close(self) -> None:
        if self.board is not None:
            with self._harmless():
                self.board.close()
            self.board = None

    def _events(self, record: dict[str, Any], losses: list[float], network: Any) -> None:
        if self.board is None:
            return
        step = record["step"]
        for name in SHOWN:
            if record.get(name) is not None:
                self.board.add_scalar(
                    name.replace("_", "/", 1) if name[:2] == "te" or name[:2] == "tr" else name, record[name], step
                )
        every = -(-len(losses) // POINTS)
        for place in range(every - 1, len(losses), every or 1):
            self.board.add_scalar("train/loss of a step", losses[place], step - len(losses) + place + 1)
        if self.histograms:
            for name, parameter in network.named_parameters():
                self.board.add_histogram(name, parameter.detach().float().cpu(), step)
        self.board.flush()

    def _picture(self, name: str, path: Path, record: dict[str, Any]) -> None:
        if self.board is None or "step" not in record:
            return
        from PIL import Image

        with Image.open(path) as image:
            self.board.add_image(name, np.asarray(image.convert("RGB")), record["step"], dataformats="HWC")

    def _hyperparameters(self, record: dict[str, Any]) -> None:
        """Write options and last figures where TensorBoard's page of hyperparameters looks for them."""
        from torch.utils.tensorboard.summary import hparams

        plain = {name: value for name, value in self.options.items() if isinstance(value, (str, int, float, bool))}
        figures = {f"last/{name}": record[name] for name in ("test_top1", "test_loss") if record.get(name) is not None}
        for summary in hparams(plain, figures):
            self.board.file_writer.add_summary(summary)
        for name, value in figures.items():
            self.board.add_scalar(name, value, record["step"])

    def _classes(self, tested: Tested) -> None:
        columns = metrics.per_class(tested.scores, tested.labels)
        names = [printable(name) for name in tested.classes]
        with whole_file(self.folder / "classes.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["class", *columns])
            for label, values in enumerate(zip(*columns.values(), strict=True)):
                *figures, other = values
                shown = ["" if v is None else f"{v:.4f}" if isinstance(v, float) else v for v in figures]
                writer.writerow([names[label], *shown, "" if other is None else names[other]])

    def _confusion_table(self, matrix: np.ndarray, classes: list[str]) -> None:
        """Write confusion.csv: a row each true class, a column each predicted one."""
        with whole_file(self.folder / "confusion.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["true class", *map(printable, classes)])
            writer.writerows([printable(name), *row] for name, row in zip(classes, matrix.tolist(), strict=True))

    def _errors(self, tested: Tested, sheet: Callable[..., None]) -> None:
        """Draw mistakes.png: the errors that the network was most sure of."""
        from report.pictures import shortened

        places = metrics.confident_errors(tested.scores, tested.labels, ERRORS)
        path = self.folder / "mistakes.png"
        if not len(places):
            path.unlink(missing_ok=True)
            return
        best = tested.scores[places].max(1)
        names = [shortened(name) for name in tested.classes]
        titles = [
            f"is {names[true]}\n{100 * sure:.1f} % {names[called]}"
            for true, sure, called in zip(
                tested.labels[places].tolist(), best.values.tolist(), best.indices.tolist(), strict=True
            )
        ]
        sheet(tested.images(tested.indices[places.numpy()]).permute(0, 2, 3, 1).numpy(), titles, path)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let a run go on where its pictures cannot be written, and say so once."""
        try:
            yield
        except (OSError, ImportError) as error:
            if not self.bare:
                print(f"no more pictures of this run: {printable(error)}; training goes on", file=sys.stderr, flush=True)
            self.bare, self.board = True, None


def _title(record: dict[str, Any]) -> str:
    place = f"epoch {record['epoch']}, " if "epoch" in record else ""
    return f"{place}test top-1 {record['test_top1']:.2f} %"
