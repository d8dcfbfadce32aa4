"""What predict.py writes of its predictions: tables, features, sheets of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.files import whole_file, write_rows
from base.text import printable
from datasets.images import FileImages
from report import tables
from report.tables import MISTAKES
from training.metrics import confident_errors

RANKINGS = ["path", "rank", "class", "probability"]
# Arrays of `write_features`.
FEATURES = ("paths", "features")


@dataclass(frozen=True)
class Prediction:
    """What became of one image.

    path: what it is called; ranking: class names and probabilities, the most probable first, empty
    for an image that cannot be read; reason: why it cannot be read. source, index: where it can be
    read again; scores: (K,) probabilities; features: (F,), what the last layer got.
    """

    path: str
    ranking: list[tuple[str, float]]
    reason: str
    source: FileImages
    index: int
    scores: Tensor | None = None
    features: Tensor | None = None


def write_rankings(found: Sequence[Prediction], path: str) -> None:
    """Write path, rank, class and probability, a row each class that was shown."""
    rows = [
        [printable(prediction.path), rank, printable(name), score]
        for prediction in found
        for rank, (name, score) in enumerate(prediction.ranking, 1)
    ]
    write_rows(path, RANKINGS, rows, named=True)


def summary(found: Sequence[Prediction]) -> str:
    """Return a table of the classes that images are taken for: how many, and how sure on average,
    the most frequent first.
    """
    scores: dict[str, list[float]] = {}
    for prediction in found:
        name, score = prediction.ranking[0]
        scores.setdefault(printable(name), []).append(score)
    rows = sorted(scores.items(), key=lambda row: (-len(row[1]), row[0]))
    width = max(len("class"), *(len(name) for name in scores))
    lines = [f"{'class':<{width}}  images  mean probability"]
    for name, values in rows:
        mean = f"{100 * sum(values) / len(values):.2f} %"
        lines.append(f"{name:<{width}}  {len(values):>6}  {mean:>16}")
    return "\n".join(lines)


def titles_of(found: Sequence[Prediction], marks: Sequence[str] | None = None) -> list[str]:
    """Return two lines an image: its file, and its most probable class, or what is given."""
    from report import pictures

    if marks is None:
        best = [prediction.ranking[0] for prediction in found]
        marks = [f"{100 * score:.1f} % {pictures.shortened(name)}" for name, score in best]
    files = [pictures.shortened_path(prediction.path) for prediction in found]
    return [f"{file}\n{mark}" for file, mark in zip(files, marks, strict=True)]


class Mistakes:
    """Labelled images that are taken for another class.

    found: predictions with scores; classes: the names of all classes.
    """

    def __init__(self, found: Sequence[Prediction], classes: Sequence[str]) -> None:
        self.found, self.classes = found, classes
        self.scores = torch.stack([p.scores for p in found if p.scores is not None])  # (N, K)
        self.labels = torch.tensor([int(p.source.labels[p.index]) for p in found])

    def write(self, path: str) -> int:
        """Write a row each mistake, the least probable label first; return how many there are."""
        paths = [prediction.path for prediction in self.found]
        rows = tables.mistake_rows(self.scores, self.labels, paths.__getitem__, self.classes)
        write_rows(path, MISTAKES, rows, named=True)
        return len(rows)

    def first(self, most: int) -> tuple[list[Prediction], list[str]]:
        """Return the first of them, and a title each."""
        from report import pictures

        order = confident_errors(self.scores, self.labels, most)
        chosen = [self.found[row] for row in order.tolist()]
        best, predicted = self.scores[order].max(1)
        values = self.labels[order].tolist(), best.tolist(), predicted.tolist()
        paths = [prediction.path for prediction in chosen]
        return chosen, pictures.mistake_titles(paths, self.classes, *values)


def nearest(
    wanted: Prediction, found: Sequence[Prediction], count: int
) -> list[tuple[float, Prediction]]:
    """Return the images whose features have the largest cosine with those of one."""
    assert wanted.features is not None
    features = torch.stack([p.features for p in found if p.features is not None])
    cosines = torch.cosine_similarity(features, wanted.features[None])
    values, rows = cosines.topk(min(count, len(found)))
    return [(value, found[row]) for value, row in zip(values.tolist(), rows.tolist(), strict=True)]


def write_features(found: Sequence[Prediction], path: str) -> tuple[int, int]:
    """Write paths, (N,) texts, and features, (N, F) float32, as .npz; return N and F."""
    features = np.stack([p.features.numpy() for p in found if p.features is not None])
    paths = np.array([prediction.path for prediction in found])
    with whole_file(path, "wb", named=True) as file:
        np.savez_compressed(file, paths=paths, features=features)
    return features.shape[0], features.shape[1]


def draw(
    images: Tensor,
    titles: Sequence[str],
    path: str,
    maps: Tensor | None = None,
    whole: Tensor | None = None,
) -> None:
    """Draw images below their titles.

    images: (N, 3, S, S) uint8; maps: of `heatmaps`; whole: as images, drawn beside them.
    """
    from report import pictures

    pixels = tables.beside(images, whole)
    if maps is not None:
        pixels = pictures.overlaid(pixels, maps.numpy())
    pictures.sheet(pixels, titles, Path(path), named=True)
