"""What predict.py writes of images, from predictions that are known."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.images import FileImages
from report.predictions import (
    Mistakes,
    Prediction,
    nearest,
    titles_of,
    write_features,
    write_rankings,
)

CLASSES = ["cat", "dog", "eel"]


def prediction(
    name: str, label: int, scores: list[float], features: Tensor | None = None
) -> Prediction:
    values = torch.tensor(scores)
    ranking = [(CLASSES[k], float(values[k])) for k in values.argsort(descending=True).tolist()]
    source = FileImages([name], np.array([label]), CLASSES, "")
    return Prediction(name, ranking, "", source, 0, values, features)


FOUND = [
    prediction("right.jpg", 0, [0.8, 0.1, 0.1]),
    prediction("sure.jpg", 1, [0.9, 0.02, 0.08]),
    prediction("unsure.jpg", 2, [0.2, 0.5, 0.3]),
]


def test_a_row_each_class_that_was_shown(tmp_path: Path) -> None:
    write_rankings(FOUND[:2], str(tmp_path / "r.csv"))
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "rank", "class", "probability"]
    assert [row[:3] for row in rows[4:]] == [
        ["sure.jpg", "1", "cat"],
        ["sure.jpg", "2", "eel"],
        ["sure.jpg", "3", "dog"],
    ]
    assert [float(row[3]) for row in rows[4:]] == pytest.approx([0.9, 0.08, 0.02])


def test_mistakes_are_the_least_probable_labels_first(tmp_path: Path) -> None:
    mistakes = Mistakes(FOUND, CLASSES)
    assert mistakes.write(str(tmp_path / "m.csv")) == 2
    with open(tmp_path / "m.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["class"], row["predicted"]) for row in rows] == [
        ("sure.jpg", "dog", "cat"),
        ("unsure.jpg", "eel", "dog"),
    ]
    assert [float(row["loss"]) for row in rows] == pytest.approx(
        [-math.log(0.02), -math.log(0.3)], abs=1e-4
    )
    chosen, titles = mistakes.first(5)
    assert [one.path for one in chosen] == ["sure.jpg", "unsure.jpg"]
    assert titles == [
        "sure.jpg\ntrue: dog\nsaid: cat 90.0 %",
        "unsure.jpg\ntrue: eel\nsaid: dog 50.0 %",
    ]
    assert [one.path for one in mistakes.first(1)[0]] == ["sure.jpg"]


def test_a_label_of_no_probability_has_the_largest_loss_of_float32(tmp_path: Path) -> None:
    mistakes = Mistakes([prediction("a.jpg", 1, [1.0, 0.0, 0.0]), FOUND[0]], CLASSES)
    assert mistakes.write(str(tmp_path / "m.csv")) == 1
    with open(tmp_path / "m.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) == pytest.approx(149 * math.log(2), abs=1e-4)


def test_titles_name_the_most_probable_class() -> None:
    assert titles_of(FOUND[:1]) == ["right.jpg\n80.0 % cat"]
    assert titles_of(FOUND[:2], ["a", "b"]) == ["right.jpg\na", "sure.jpg\nb"]


def test_what_is_near_has_the_largest_cosine() -> None:
    angles = [0.0, 1.0, 0.5, 3.0]
    found = [
        # Longer features are no nearer.
        prediction(f"{angle}", 0, [1, 0, 0], torch.tensor([np.cos(angle), np.sin(angle)]) * length)
        for angle, length in zip(angles, (1, 9, 2, 5), strict=True)
    ]
    near = nearest(found[0], found, 3)
    assert [one.path for _, one in near] == ["0.0", "0.5", "1.0"]
    assert [value for value, _ in near] == pytest.approx([1, np.cos(0.5), np.cos(1)], abs=1e-6)
    assert len(nearest(found[0], found, 99)) == 4


def test_features_are_written_with_their_paths(tmp_path: Path) -> None:
    found = [prediction(f"{n}.jpg", 0, [1, 0, 0], torch.arange(5.0) + n) for n in range(3)]
    assert write_features(found, str(tmp_path / "f.npz")) == (3, 5)
    with np.load(tmp_path / "f.npz") as held:
        assert held["paths"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
        assert held["features"].dtype == np.float32
        assert np.array_equal(held["features"], np.arange(5) + np.arange(3)[:, None])
