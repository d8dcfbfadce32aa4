"""What a test leaves to be shown, and the tables of it: classes.csv and confusion.csv."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from base.files import write_rows
from base.text import printable
from report.record import TestMetrics
from training.metrics import per_class


@dataclass(frozen=True)
class Tested:
    """What a test leaves.

    scores: (N, K) probabilities; labels, indices: (N,); classes: their display names; preview: from
    indices (n,) to what the network sees of these images, (n, 3, S, S) uint8.
    """

    metrics: TestMetrics
    scores: Tensor
    labels: Tensor
    indices: np.ndarray
    classes: list[str]
    preview: Callable[[np.ndarray], Tensor]


def write_classes(tested: Tested, path: Path, epoch: int | None = None) -> None:
    """Write classes.csv: a row each class with its images and metrics. epoch: that it is of."""
    columns = per_class(tested.scores, tested.labels)
    names = [printable(name) for name in tested.classes]
    rows = []
    for name, *values, confused in zip(names, *columns.values(), strict=True):
        shown = [_cell(value) for value in values]
        rows.append([name, *shown, "" if confused is None else names[confused]])
    heading = ["class", *columns]
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
