"""Pictures of a run: curves, confusion matrix, sheets of images with names. Drawn to a file that is never half there.

The colours are Okabe and Ito's (jfly.uni-koeln.de/color), which the colour-blind tell apart; lines differ in their marks
too. Names from outside are drawn as they are, escaped, never as formulas.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from base.files import whole_file
from base.text import printable

BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKS = "osv^DX"
NUMBERED, NAMED = 20, 120  # classes up to which cells have numbers, and rows names
PAIRS = 24  # most frequent confusions that are listed where rows have no names
NAME = 18  # characters of a class name


def shortened(name: object, most: int = NAME) -> str:
    """Return a name of at most `most` characters on one line."""
    text = printable(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def save(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write the figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with whole_file(path, "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks: they are drawn as boxes
        figure.savefig(file, format="png", dpi=dpi)


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, top-1 accuracy and learning rate by epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, top1, rate = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in history]
    for axes, key, title in ((loss, "loss", "loss"), (top1, "top1", "top-1, %")):
        for part, colour, mark in (("train", BLUE, "o"), ("test", RED, "s")):
            axes.plot(epochs, _column(history, f"{part}_{key}"), color=colour, marker=mark, markersize=3, label=part)
        axes.set_title(title)
        axes.legend()
    rate.plot(epochs, _column(history, "lr"), color=GREEN, marker="v", markersize=3, drawstyle="steps-post")
    rate.set_title("learning rate")
    highest, lowest = max(record["lr"] for record in history), min(record["lr"] for record in history)
    if lowest > 0:
        rate.set_yscale("log")
        rate.set_ylim(bottom=max(lowest / 2, highest / 1e4))  # a cosine's last step would hide all others
    for axes in (loss, top1, rate):
        _count_epochs(axes)
    save(figure, path)


def comparison(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Draw the test top-1 and the training loss of several runs by epoch."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for part, key, title in ((axes[0], "test_top1", "test top-1, %"), (axes[1], "train_loss", "training loss")):
        for place, (name, history) in enumerate(runs.items()):
            colour, mark = COLOURS[place % len(COLOURS)], MARKS[place // len(COLOURS) % len(MARKS)]
            epochs = [record["epoch"] for record in history]
            part.plot(epochs, _column(history, key), color=colour, marker=mark, markersize=3, label=shortened(name, 40))
        part.set_title(title)
        _count_epochs(part)
    for text in axes[0].legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    save(figure, path)


def _column(history: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float("nan") if record.get(key) is None else record[key] for record in history]


def _count_epochs(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9")


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix as shares of each true class. matrix: (K, K) counts, a row each true class."""
    count = len(classes)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(14.0, max(5.0, 2.5 + 0.55 * count)) if count <= NUMBERED else 16.0 if count <= NAMED else 10.0
    listed = count > NAMED
    figure = Figure(figsize=(side + (4.6 if listed else 1), side), layout="constrained")
    axes, *rest = np.atleast_1d(figure.subplots(1, 1 + listed, width_ratios=[side, 4.6][: 1 + listed]))
    # Few errors among many classes: a logarithmic scale shows single ones.
    norm = LogNorm(0.1, 100) if count > NUMBERED else None
    image = axes.imshow(np.maximum(shares, 0.1) if norm else shares, cmap="cividis", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true class")
    axes.set_title(title or "confusion", parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= NAMED:
        size = 9 if count <= NUMBERED else max(4.5, min(9.0, 640 / count))
        names = [shortened(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    if count <= NUMBERED:
        for row, column in np.ndindex(count, count):
            if shares[row, column] >= 0.5:
                colour = "black" if shares[row, column] > 55 else "white"
                axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    if listed:
        _list_pairs(rest[0], matrix, classes)
    save(figure, path)


def _list_pairs(axes: Any, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write down the most frequent confusions."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    axes.axis("off")
    axes.set_title("most frequent errors", loc="left")
    for line, place in enumerate(np.argsort(-errors, axis=None, kind="stable")[:PAIRS]):
        true, predicted = np.unravel_index(place, errors.shape)
        if errors[true, predicted]:
            text = f"{errors[true, predicted]} x {shortened(classes[true])}\n   called {shortened(classes[predicted])}"
            axes.text(0, 1 - line / PAIRS, text, va="top", fontsize=8, parse_math=False, transform=axes.transAxes)


def sheet(images: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Draw images in a grid, each below its title of one or two lines. images: (N, S, S, 3) uint8."""
    columns = min(6, max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(2.1 * columns, 2.5 * rows), layout="constrained")
    for place, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axes.axis("off")
        if place < len(images):
            axes.imshow(images[place], interpolation="nearest")
            axes.set_title(titles[place], fontsize=8, parse_math=False)
    save(figure, path)
