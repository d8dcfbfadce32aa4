"""What a test leaves to be shown, and its tables: classes.csv, confusion.csv, mistakes.csv."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.files import write_rows
from base.text import printable
from report.record import TestMetrics
from training.metrics import confident_errors, per_class

# float32 has no smaller number.
MIN_PROBABILITY = 2.0**-149


@dataclass(frozen=True)
class Tested:
    """What a test leaves.

    scores: (N, K) probabilities; labels, indices: (N,); classes: their display names; path: from an
    index to what the image is called; preview: from indices (n,) to what the network sees of these
    images, (n, 3, S, S) uint8; whole: to all of them, None where that is the same.
    """

    metrics: TestMetrics
    scores: Tensor
    labels: Tensor
    indices: np.ndarray
    classes: list[str]
    path: Callable[[int], str]
    preview: Callable[[np.ndarray], Tensor]
    whole: Callable[[np.ndarray], Tensor | None] | None = None

    def shown(self, indices: np.ndarray) -> np.ndarray:
        """Return what the network sees of images, and all of them beside it, (n, S, W, 3)."""
        seen = self.preview(indices)
        return beside(seen, self.whole(indices) if self.whole is not None else None)

    def name(self, row: int) -> str:
        """Return what the image of a row is called."""
        return self.path(int(self.indices[row]))


def beside(seen: Tensor, whole: Tensor | None) -> np.ndarray:
    """Return images as they are shown, (n, S, W, 3) uint8.

    seen: (n, 3, S, S) uint8; whole: the same, which comes to the right of a white gap.
    """
    if whole is None:
        return seen.permute(0, 2, 3, 1).numpy()
    gap = seen.new_full((*seen.shape[:3], max(1, seen.shape[3] // 32)), 255)
    return torch.cat([seen, gap, whole], 3).permute(0, 2, 3, 1).numpy()


def class_rows(tested: Tested) -> tuple[list[str], list[list[str]]]:
    """Return the heading and a row each class: its images and metrics."""
    columns = per_class(tested.scores, tested.labels)
    names = [printable(name) for name in tested.classes]
    rows = []
    for name, *values, confused in zip(names, *columns.values(), strict=True):
        shown = [_cell(value) for value in values]
        rows.append([name, *shown, "" if confused is None else names[confused]])
    return ["class", *columns], rows


def write_classes(tested: Tested, path: Path, epoch: int | None = None) -> None:
    """Write classes.csv: a row each class with its images and metrics. epoch: that it is of."""
    heading, rows = class_rows(tested)
    if epoch is not None:
        heading.append("epoch")
        rows = [[*row, str(epoch)] for row in rows]
    write_rows(path, heading, rows)


MISTAKES = ["path", "class", "predicted", "p_class", "p_predicted", "loss"]


def mistake_rows(
    scores: Tensor, labels: Tensor, path: Callable[[int], str], classes: Sequence[str]
) -> list[list[str]]:
    """Return a row each misclassified image, the least probable label first: those are the ones
    whose label may be wrong.

    scores: (N, K) probabilities; labels: (N,); path: from a row to what the image is called.
    """
    names = [printable(name) for name in classes]
    wrong = confident_errors(scores, labels)
    best = scores[wrong].max(1)
    of_label = scores[wrong].gather(1, labels[wrong, None])[:, 0]
    columns = (wrong, labels[wrong], best.indices, of_label, best.values)
    rows = []
    for row, label, predicted, own, most in zip(*(c.tolist() for c in columns), strict=True):
        loss = -math.log(max(own, MIN_PROBABILITY))
        values = f"{own:.6f}", f"{most:.6f}", f"{loss:.4f}"
        rows.append([printable(path(row)), names[label], names[predicted], *values])
    return rows


def write_mistakes(tested: Tested, path: Path, epoch: int | None = None) -> None:
    """Write mistakes.csv: the rows of `mistake_rows`. epoch: that they are of."""
    rows = mistake_rows(tested.scores, tested.labels, tested.name, tested.classes)
    heading = [*MISTAKES]
    if epoch is not None:
        heading.append("epoch")
        rows = [[*row, str(epoch)] for row in rows]
    write_rows(path, heading, rows)


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def write_confusion(
    matrix: np.ndarray, classes: list[str], path: Path, epoch: int | None = None
) -> None:
    """Write confusion.csv: a row each true class, a column each predicted one.

    matrix: (K, K) counts; epoch: that it is of.
    """
    names = [printable(name) for name in classes]
    rows = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    corner = "true class" if epoch is None else f"true class, epoch {epoch}"
    write_rows(path, [corner, *names], rows)
