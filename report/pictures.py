"""Pictures of a run: curves, confusion matrix, sheets of images with names.

Drawn to a file that is never half there.

The colours are Okabe and Ito's (jfly.uni-koeln.de/color), which the colour-blind tell apart; lines
differ in their marks too. Names from outside are drawn as they are, escaped, never as formulas.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from base.files import whole_file
from base.text import printable
from report.record import EpochRecord

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
RED = "#D55E00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKS = "osv^DX"
# Matplotlib's keywords.
Style = dict[str, Any]
# Classes up to which cells have numbers, and rows names.
MAX_NUMBERED = 20
MAX_NAMED = 120
# Most frequent confusions that are listed where rows have no names.
PAIRS = 24
# Characters of a class name.
MAX_NAME = 18


def shortened(name: object, most: int = MAX_NAME) -> str:
    """Return a name of at most `most` characters on one line."""
    text = printable(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def save(figure: Figure, path: Path, dpi: int = 100, *, named: bool = False) -> None:
    """Write the figure as PNG, whole or not at all. named: as of `base.files.whole_file`."""
    FigureCanvasAgg(figure)
    with whole_file(path, "wb", named=named) as file, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of characters that the font lacks: they are drawn as boxes
        figure.savefig(file, format="png", dpi=dpi)


def curves(history: Sequence[EpochRecord], path: Path) -> None:
    """Draw loss, top-1 accuracy and learning rate by epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, top1, rate = figure.subplots(1, 3)
    epochs = [record.epoch for record in history]

    for axes, key, title in ((loss, "loss", "loss"), (top1, "top1", "top-1, %")):
        for part, colour, mark in (("train", BLUE, "o"), ("test", RED, "s")):
            style: Style = {"color": colour, "marker": mark, "markersize": 3, "label": part}
            axes.plot(epochs, _column(history, f"{part}_{key}"), **style)
        axes.set_title(title)
        axes.legend()

    style = {"color": GREEN, "marker": "v", "markersize": 3, "drawstyle": "steps-post"}
    rates = _column(history, "lr")
    rate.plot(epochs, rates, **style)
    rate.set_title("learning rate")
    if min(rates) > 0:
        rate.set_yscale("log")
        # A cosine's last step would hide all others.
        rate.set_ylim(bottom=max(min(rates) / 2, max(rates) / 1e4))
    for axes in (loss, top1, rate):
        _count_epochs(axes)
    save(figure, path)


def comparison(
    runs: Mapping[str, Sequence[EpochRecord]], path: Path, *, named: bool = False
) -> None:
    """Draw the test top-1 and the training loss of several runs by epoch."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)

    for axes, key, title in (
        (accuracy, "test_top1", "test top-1, %"),
        (loss, "train_loss", "training loss"),
    ):
        for number, (name, history) in enumerate(runs.items()):
            style: Style = {"color": COLOURS[number % len(COLOURS)], "markersize": 3}
            style |= {"marker": MARKS[number // len(COLOURS) % len(MARKS)]}
            epochs = [record.epoch for record in history]
            axes.plot(epochs, _column(history, key), label=shortened(name, 40), **style)
        axes.set_title(title)
        _count_epochs(axes)
    for text in accuracy.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    save(figure, path, named=named)


def _column(history: Sequence[EpochRecord], key: str) -> list[float]:
    values = [getattr(record, key) for record in history]
    return [float("nan") if value is None else value for value in values]


def _count_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.grid(color="0.9")


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix as shares of each true class.

    matrix: (K, K) counts, a row each true class.
    """
    count = len(classes)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axes, list_axes = _confusion_figure(count)

    # Few errors among many classes: a logarithmic scale shows single ones.
    norm = LogNorm(0.1, 100) if count > MAX_NUMBERED else None
    shown = np.maximum(shares, 0.1) if norm else shares
    image = axes.imshow(shown, cmap="cividis", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true class")
    axes.set_title(title or "confusion", parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")

    if count <= MAX_NAMED:
        _name_classes(axes, classes)
    if count <= MAX_NUMBERED:
        _number_cells(axes, shares)
    if list_axes is not None:
        _list_pairs(list_axes, matrix, classes)
    save(figure, path)


def _confusion_figure(count: int) -> tuple[Figure, Axes, Axes | None]:
    """Return a figure for `count` classes, the axes of the matrix, and those of the list where
    names do not fit.
    """
    if count <= MAX_NUMBERED:
        side = min(14.0, max(5.0, 2.5 + 0.55 * count))
    else:
        side = 16.0 if count <= MAX_NAMED else 10.0
    if count <= MAX_NAMED:
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        return figure, figure.subplots(), None

    beside = 4.6
    figure = Figure(figsize=(side + beside, side), layout="constrained")
    axes, list_axes = figure.subplots(1, 2, width_ratios=[side, beside])
    return figure, axes, list_axes


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Write the names of the classes at rows and columns."""
    count = len(classes)
    size = 9 if count <= MAX_NUMBERED else max(4.5, min(9.0, 640 / count))
    names = [shortened(name) for name in classes]
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=size, parse_math=False)


def _number_cells(axes: Axes, shares: np.ndarray) -> None:
    """Write percents into the cells. shares: (K, K) percent."""
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        if share >= 0.5:
            style: Style = {"ha": "center", "va": "center", "fontsize": 9}
            axes.text(
                column, row, f"{share:.0f}", color="black" if share > 55 else "white", **style
            )


def _list_pairs(axes: Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write down the most frequent confusions."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    axes.axis("off")
    axes.set_title("most frequent errors", loc="left")
    order = np.argsort(-errors, axis=None, kind="stable")[:PAIRS]
    style: Style = {"va": "top", "fontsize": 8, "parse_math": False, "transform": axes.transAxes}

    for line, cell in enumerate(order):
        true, predicted = np.unravel_index(cell, errors.shape)
        if errors[true, predicted]:
            pair = shortened(classes[true]), shortened(classes[predicted])
            text = f"{errors[true, predicted]} x {pair[0]}\n   called {pair[1]}"
            axes.text(0, 1 - line / PAIRS, text, **style)


def sheet(
    images: np.ndarray,
    titles: Sequence[str],
    path: Path,
    heading: str = "",
    *,
    named: bool = False,
) -> None:
    """Draw images in a grid, each below its title of one or two lines.

    images: (N, S, S, 3) uint8.
    """
    columns = min(6, max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(2.1 * columns, 2.5 * rows), layout="constrained")

    if heading:
        figure.suptitle(heading, fontsize=10, parse_math=False)
    for place, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axes.axis("off")
        if place < len(images):
            axes.imshow(images[place], interpolation="nearest")
            axes.set_title(titles[place], fontsize=8, parse_math=False)

    save(figure, path, named=named)
