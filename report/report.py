"""What a run draws of itself, beside its log: TensorBoard events, curves, confusion matrix, tables,
mistakes.

Pictures are drawn when the last ones cost less than 1 % of the time since, and at the end: they
never slow a run down. A picture or event that cannot be written is not worth a run: it is said
once, and training continues.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from base.text import printable
from report import contact, tables
from report.events import Events
from report.page import About, Found
from report.record import EpochRecord, Json
from report.tables import Tested
from training.lr_range import RangeTest
from training.metrics import confident_errors, confusion_matrix

# Seconds that the first pictures may cost, what draws them has to be loaded.
FIRST_COST = 5.0
# Of a run's time that pictures may take.
MAX_SHARE = 0.01
# Classes up to which tables cost next to nothing, and are written in every best epoch at once.
CHEAP_CLASSES = 200
# Classes up to which all pairs of them are written down.
MAX_CONFUSION = 5000
# Images on the sheet of mistakes.
MISTAKES = 24


class Report:
    """Writes into the run's folder.

    options: what TensorBoard compares runs by; disabled: write nothing at all; histograms: add
    those of all weights.
    """

    def __init__(
        self,
        folder: Path,
        options: Json,
        *,
        disabled: bool = False,
        histograms: bool = False,
    ) -> None:
        self.folder, self.options = folder, options
        self.disabled, self.histograms = disabled, histograms
        self.events: Events | None = None
        self.drawn_at = time.monotonic()
        self.cost = FIRST_COST
        # The best epoch, until its mistakes are drawn.
        self.best: tuple[EpochRecord, Tested] | None = None
        # What report.html says: of the run, and of the best epoch that was drawn.
        self.about = About(folder.name)
        self.found: Found | None = None
        self.classes: list[str] = []

    def open(self, step: int) -> None:
        """Begin, or resume after `step` updates."""
        if not self.disabled:
            with self._harmless():
                self.events = Events(self.folder, step)

    def first_batch(self, images: Tensor, labels: Tensor) -> None:
        """Show some of the first batch as the network sees it.

        images: (N, 3, S, S) uint8, or float of 0 to 255; labels: (N,).
        """
        if self.events is not None:
            with self._harmless():
                self.events.first_batch(images)
        if not self.disabled and len(images):
            with self._harmless():
                pixels = images[: contact.COUNT].cpu().round().to(torch.uint8)
                names = self.classes
                titles = [printable(names[k]) for k in labels[: contact.COUNT].tolist()]
                path = self.folder / "first_batch.png"
                contact.draw(pixels.permute(0, 2, 3, 1).numpy(), titles, path)

    def _draw_test_batch(self, tested: Tested) -> None:
        """Draw the first images of the test, with their classes and what they are taken for."""
        count = min(contact.COUNT, len(tested.labels))
        if not count:
            return
        names = [printable(name) for name in tested.classes]
        predicted = tested.scores[:count].argmax(1).tolist()
        titles = [
            names[label] if label == said else f"{names[label]}\nsaid: {names[said]}"
            for label, said in zip(tested.labels[:count].tolist(), predicted, strict=True)
        ]
        images = tested.preview(tested.indices[:count]).permute(0, 2, 3, 1).numpy()
        contact.draw(images, titles, self.folder / "test_batch.png")

    def epoch(
        self,
        history: list[EpochRecord],
        tested: Tested,
        losses: list[float],
        network: nn.Module,
        *,
        best: bool,
        snapshot: bool,
        last: bool,
    ) -> None:
        """Show an epoch that has ended, the last one of the history.

        losses: of its steps; best: it is the best so far; snapshot: weights of this epoch are kept;
        last: the run ends with it.
        """
        if self.disabled:
            return
        record = history[-1]
        if len(history) == 1:
            with self._harmless():
                self._draw_test_batch(tested)
        if self.events is not None:
            with self._harmless():
                self.events.epoch(record, losses)
                if self.histograms:
                    self.events.histograms(network, record.step)
                self.events.flush()

        if best:
            # Of the weights that are kept: best.pt's.
            self.best = record, tested
            if len(tested.classes) <= CHEAP_CLASSES:
                with self._harmless():
                    self._write_tables(tested, record)

        # Drawing takes seconds, a step milliseconds: a run must not be slower for its pictures.
        started = time.monotonic()
        if last or self.cost < MAX_SHARE * (started - self.drawn_at):
            self._draw_epoch(tested, history, confusion=snapshot or last)
            self.drawn_at = time.monotonic()
            self.cost = self.drawn_at - started

        if last and self.events is not None:
            with self._harmless():
                self.events.hyperparameters(self.options, record)
                self.events.flush()

    def draw_test(self, tested: Tested) -> None:
        """Write the pictures and tables of a test alone."""
        if self.disabled:
            return
        with self._harmless():
            self._write_tables(tested, None)
        with self._harmless():
            self._draw_confusion(tested, None)
        with self._harmless():
            self._draw_mistakes(tested, None)
        with self._harmless():
            from report import page

            page.write(self.folder, self.about, page.found(tested))

    def draw_range(self, found: RangeTest) -> None:
        """Draw findLR.png."""
        if self.disabled:
            return
        from report import pictures

        with self._harmless():
            pictures.lr_range(found, self.folder / "findLR.png")

    def _draw_epoch(self, tested: Tested, history: list[EpochRecord], *, confusion: bool) -> None:
        """Draw the curves, the confusion of this epoch, and the mistakes of the best one; write
        report.html.
        """
        from report import page, pictures

        with self._harmless():
            pictures.curves(history, self.folder / "curves.png")
        if confusion:
            with self._harmless():
                self._draw_confusion(tested, history[-1])
        if self.best is not None:
            record, best = self.best
            if len(best.classes) > CHEAP_CLASSES:
                with self._harmless():
                    self._write_tables(best, record)
            with self._harmless():
                self._draw_mistakes(best, record)
            # What report.html shows is all of one epoch.
            if not (confusion and record is history[-1]):
                with self._harmless():
                    self._draw_confusion(best, record)
            with self._harmless():
                self.found = page.found(best, record.epoch)
            # Once is enough: its scores are as large as the test set.
            self.best = None
        if self.found is not None:
            with self._harmless():
                page.write(self.folder, self.about, self.found, len(history))

    def _write_tables(self, tested: Tested, record: EpochRecord | None) -> None:
        epoch = None if record is None else record.epoch
        tables.write_classes(tested, self.folder / "classes.csv", epoch)
        tables.write_mistakes(tested, self.folder / "mistakes.csv", epoch)
        if len(tested.classes) <= MAX_CONFUSION:
            matrix = _confusion(tested)
            tables.write_confusion(matrix, tested.classes, self.folder / "confusion.csv", epoch)

    def close(self) -> None:
        if self.events is not None:
            with self._harmless():
                self.events.close()
            self.events = None

    def _draw_confusion(self, tested: Tested, record: EpochRecord | None) -> None:
        from report import pictures

        top1 = tested.metrics.test_top1
        title = "nothing was tested" if top1 is None else f"test top-1 {top1:.2f} %"
        name = "confusion.png"
        if record is not None:
            title, name = f"epoch {record.epoch}, {title}", f"confusion_{record.epoch}.png"
        pictures.confusion(_confusion(tested), tested.classes, self.folder / name, title)
        if record is not None and self.events is not None:
            self.events.picture("confusion", self.folder / name, record.step)

    def _draw_mistakes(self, tested: Tested, record: EpochRecord | None) -> None:
        """Draw mistakes.png: the errors that the network was most sure of."""
        from report import pictures

        rows = confident_errors(tested.scores, tested.labels, MISTAKES)
        path = self.folder / "mistakes.png"
        if not len(rows):
            path.unlink(missing_ok=True)
            return

        indices = tested.indices[rows.numpy()]
        titles = pictures.mistake_titles(
            [tested.path(index) for index in indices.tolist()],
            tested.classes,
            tested.labels[rows].tolist(),
            *(values.tolist() for values in tested.scores[rows].max(1)),
        )
        of = "" if record is None else f"epoch {record.epoch}, the best so far"
        pictures.sheet(tested.shown(indices), titles, path, of)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let a run continue where its pictures cannot be written, and say so once."""
        try:
            yield
        except (OSError, ImportError) as error:
            if not self.disabled:
                message = f"no more pictures of this run: {printable(error)}; training continues"
                print(message, file=sys.stderr, flush=True)
            # Once is enough: the disk will be as full in the next epoch.
            self.disabled, self.events = True, None


def _confusion(tested: Tested) -> np.ndarray:
    """Return counts, (K, K), a row each true class."""
    predicted = tested.scores.argmax(1)
    return confusion_matrix(predicted, tested.labels, len(tested.classes)).numpy()
