"""Pictures of a run: curves, confusion matrix, sheets of images with names.

Drawn to a file that is never half there.

The colours are Okabe and Ito's (jfly.uni-koeln.de/color), which the colour-blind tell apart; lines
differ in their marks too. Names from outside are drawn as they are, escaped, never as formulas.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from base.files import SOFTWARE, whole_file
from base.text import printable
from report.record import EpochRecord
from training.lr_range import RangeTest

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
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": SOFTWARE})


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

    best = max(history, key=lambda r: -1.0 if r.test_top1 is None else r.test_top1)
    if best.test_top1 is not None:
        marked = f"best: {best.test_top1:.2f} %, epoch {best.epoch}"
        top1.plot(best.epoch, best.test_top1, "*", color=ORANGE, markersize=11, label=marked)
        top1.legend()
    # A record has the rate of its epoch's last step: of what is between nothing is drawn.
    rates = _column(history, "lr")
    rate.plot(epochs, rates, color=GREEN, marker="v", markersize=3, linewidth=0.8)
    rate.set_title("learning rate of each epoch's last step")
    if min(rates) > 0:
        rate.set_yscale("log")
        # A cosine's last step would hide all others.
        rate.set_ylim(bottom=max(min(rates) / 2, max(rates) / 1e4))
    for axes in (loss, top1, rate):
        _count_epochs(axes)
    save(figure, path)


def lr_range(found: RangeTest, path: Path) -> None:
    """Draw the loss over the learning rate of a range test, with the rate that it suggests."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color=SKY, linewidth=0.8, label="of each step")
    axes.plot(found.rates, found.smoothed, color=BLUE, label="smoothed")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color=RED, label=f"suggested: {found.suggestion:g}")
    axes.set_xscale("log")
    # Where it diverges would flatten all that is before.
    first = [loss for loss in found.smoothed[:10] if np.isfinite(loss)]
    if first:
        axes.set_ylim(0, 1.5 * max(first))
    axes.set_title("learning-rate range test")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend()
    axes.grid(color="0.9")
    save(figure, path)


def comparison(
    runs: Mapping[str, Sequence[EpochRecord]],
    path: Path,
    *,
    by: str = "epoch",
    named: bool = False,
) -> None:
    """Draw the test top-1, the training loss and the learning rate of several runs.

    by: epoch, step, or seconds of training and testing.
    """
    figure = Figure(figsize=(16, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)

    for axes, key, title in zip(
        panels,
        ("test_top1", "train_loss", "lr"),
        ("test top-1, %", "training loss", "learning rate at the end of an epoch"),
        strict=True,
    ):
        for number, (name, history) in enumerate(runs.items()):
            style: Style = {"color": COLOURS[number % len(COLOURS)], "markersize": 3}
            style |= {"marker": MARKS[number // len(COLOURS) % len(MARKS)]}
            places = _column(history, by)
            places = np.cumsum(places).tolist() if by == "seconds" else places
            axes.plot(places, _column(history, key), label=shortened(name, 40), **style)
        axes.set_title(title)
        axes.grid(color="0.9")
        axes.set_xlabel(by)
        if by == "epoch":
            _count_epochs(axes)
    panels[2].set_yscale("symlog", linthresh=1e-5)
    for text in panels[0].legend(fontsize=8).get_texts():
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

    # Few errors among many classes: a logarithmic scale shows single ones. One scale for all
    # epochs, so that two pictures compare; what never happened is white.
    norm = LogNorm(0.1, 100) if count > MAX_NUMBERED else Normalize(0, 100)
    never = np.ma.masked_equal(matrix, 0)
    shown = np.ma.masked_array(np.maximum(shares, 0.1), never.mask)
    image = axes.imshow(shown, cmap="YlGnBu", norm=norm, interpolation="nearest")
    if count <= MAX_NUMBERED:
        # What is right stands apart from the errors.
        for place in range(count):
            corner = (place - 0.5, place - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.5))
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true class")
    axes.set_title(title or "confusion", parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")

    if count <= MAX_NAMED:
        _name_classes(axes, classes, matrix.sum(1).tolist())
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


def _name_classes(axes: Axes, classes: Sequence[str], counts: Sequence[int]) -> None:
    """Write the names of the classes at rows, with their images, and at columns."""
    count = len(classes)
    size = max(4.5, min(9.0, 640 / count))
    names = [shortened(name) for name in classes]
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
    rows = [f"{name}  ({images})" for name, images in zip(names, counts, strict=True)]
    axes.set_yticks(range(count), rows, fontsize=size, parse_math=False)


def _number_cells(axes: Axes, shares: np.ndarray) -> None:
    """Write percents into the cells. shares: (K, K) percent."""
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        if share >= 0.5:
            style: Style = {"ha": "center", "va": "center", "fontsize": 9}
            axes.text(
                column, row, f"{share:.0f}", color="white" if share > 55 else "black", **style
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


def overlaid(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Return images under the colours of their maps, (N, S, S, 3) uint8.

    images: (N, S, S, 3) uint8; maps: (N, S, S) in [0, 1]. Where nothing speaks for the class the
    image is dark and grey, so that the colours are not taken for its own.
    """
    grey = images.mean(3, keepdims=True) * 0.6
    colours = matplotlib.colormaps["inferno"](maps)[..., :3] * 255
    share = 0.6 * maps[..., None]
    return ((1 - share) * grey + share * colours).round().astype(np.uint8)


def shortened_path(path: str, most: int = 24) -> str:
    """Return a file's name, cut in its middle: its beginning and its end tell it from others."""
    text = printable(os.path.basename(path))
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def mistake_titles(
    paths: Sequence[str],
    classes: Sequence[str],
    labels: Sequence[int],
    scores: Sequence[float],
    predicted: Sequence[int],
) -> list[str]:
    """Return three lines an image: its file, its class, and what it was taken for, how surely."""
    names = [shortened(name) for name in classes]
    return [
        f"{shortened_path(path)}\ntrue: {names[label]}\nsaid: {names[said]} {100 * score:.1f} %"
        for path, label, score, said in zip(paths, labels, scores, predicted, strict=True)
    ]


def sheet(
    images: np.ndarray,
    titles: Sequence[str],
    path: Path,
    heading: str = "",
    *,
    named: bool = False,
) -> None:
    """Draw images in a grid, each below its title of one to three lines.

    images: (N, S, W, 3) uint8.
    """
    # Fewer of pictures that are twice as wide.
    wide = images.shape[2] / images.shape[1] if len(images) else 1.0
    columns = min(6 if wide < 1.5 else 4, max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    lines = max((title.count("\n") for title in titles), default=1)
    figure = Figure(
        figsize=(2.1 * wide * columns, (2.3 + 0.18 * lines) * rows), layout="constrained"
    )

    if heading:
        figure.suptitle(heading, fontsize=10, parse_math=False)
    for place, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axes.axis("off")
        if place < len(images):
            axes.imshow(images[place], interpolation="nearest")
            axes.set_title(titles[place], fontsize=8, parse_math=False)

    save(figure, path, named=named)
