"""A run can be looked at: in TensorBoard, as pictures, as tables, beside other runs."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from common import epoch_record
from PIL import Image
from rig import ROOT, make_images, on_folder
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

import compare
import data
import main
import model
from datasets.images import FileImages
from loading.plan import Plan
from report import pictures, predictions, tables
from report.predictions import Prediction
from report.record import EpochRecord
from report.report import Report
from training import metrics
from transforms import Pipeline


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the second one stopped after an epoch and continued; the folder that holds them."""
    folder = tmp_path_factory.mktemp("runs")
    images = make_images(folder / "images", 24)
    arguments = [
        *on_folder(images, "--batchSize", "8"),
        "--expDir",
        str(folder),
        "--netType",
        "alexnetbn",
    ]
    main.main([*arguments, "--expID", "a", "--nEpochs", "2", "--histograms"])
    main.main([*arguments, "--expID", "b", "--nEpochs", "1", "--logger", "none"])
    main.main([*arguments, "--expID", "b", "--nEpochs", "3", "--logger", "full", "--continue"])
    return folder / "folder"


def test_tensorboard_shows_a_run(runs: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(runs),
        "--port",
        str(port),
        "--load_fast",
        "false",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            tags = wait_for_tags(port)
            log = [json.loads(line) for line in (runs / "a" / "log.jsonl").read_text().splitlines()]
            found = ask(port, "scalars", "scalars?run=a&tag=test%2Ftop1")
            assert [step for _, step, _ in found] == [record["step"] for record in log]
            assert [value for *_, value in found] == pytest.approx(
                [record["test_top1"] for record in log], rel=1e-5
            )
            assert {"train/loss", "test/loss", "lr", "train/loss of a step"} <= tags["a"].keys()
            assert (
                len(ask(port, "scalars", "scalars?run=a&tag=train%2Floss+of+a+step"))
                == log[-1]["step"]
            )
            assert {"first batch", "confusion"} <= ask(port, "images", "tags")["a"].keys()
            assert "body.features.0.weight" in "".join(ask(port, "histograms", "tags")["a"])
            assert [
                step for _, step, _ in ask(port, "scalars", "scalars?run=b&tag=test%2Ftop1")
            ] == [6, 9]
        finally:
            server.kill()


def ask(port: int, plugin: str, what: str) -> dict:
    url = f"http://127.0.0.1:{port}/data/plugin/{plugin}/{what}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        url, timeout=20
    ) as answer:
        return json.load(answer)


def wait_for_tags(port: int) -> dict:
    for _ in range(300):
        try:
            if (tags := ask(port, "scalars", "tags")).keys() >= {"a", "b"}:
                return tags
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("tensorboard did not answer")


def test_a_run_leaves_pictures_that_are_whole(runs: Path) -> None:
    names = {path.name for path in (runs / "a").iterdir()}
    assert {"curves.png", "confusion_2.png", "classes.csv", "confusion.csv"} <= names
    last = json.loads((runs / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert ("mistakes.png" in names) == (last["test_top1"] < 100)
    assert not [name for name in names if name.endswith(".tmp")]
    for path in (runs / "a").glob("*.png"):
        with Image.open(path) as image:
            image.load()


@pytest.mark.parametrize("count", [2, 10, 100, 300])
def test_pictures_of_any_number_of_classes(count: int, tmp_path: Path) -> None:
    names = [f"${label}_" + "\u4e00" * 30 + "\n\u202e" for label in range(count)]
    matrix = np.diag(np.arange(count)) + (np.arange(count)[:, None] == np.arange(count) - 1)
    pictures.confusion(matrix, names, tmp_path / "c.png", "epoch 1, $")
    with Image.open(tmp_path / "c.png") as image:
        assert min(image.size) >= 500


def test_figures_of_each_class_are_scikit_learns(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    scores = torch.from_numpy(random.random((300, 6)))
    labels = torch.from_numpy(random.integers(0, 5, 300))  # class 5 has no image
    found = metrics.per_class(scores, labels)
    called = scores.argmax(1).numpy()
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, called, labels=range(5), zero_division=0
    )
    assert found["images"] == [*images, 0]
    for name, expected in (
        ("precision", precision),
        ("recall", recall),
        ("top1", recall),
        ("f1", f1),
    ):
        assert found[name][:5] == pytest.approx(100 * expected, abs=1e-9)
        assert found[name][5] is None
    expected = [
        100 * average_precision_score(labels.numpy() == label, scores[:, label].numpy())
        for label in range(5)
    ]
    assert found["average_precision"][:5] == pytest.approx(expected, abs=1e-9)


def test_the_table_of_classes_is_that_of_the_last_test(runs: Path) -> None:
    with (runs / "a" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["class 0", "class 1", "class 2"]
    images = [int(row["images"]) for row in rows]
    top1 = json.loads((runs / "a" / "log.jsonl").read_text().splitlines()[-1])["test_top1"]
    assert np.average([float(row["top1"]) for row in rows], weights=images) == pytest.approx(
        top1, abs=1e-3
    )


def test_the_surest_errors_come_first() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    assert metrics.confident_errors(scores, torch.tensor([0, 0, 0, 1]), 5).tolist() == [1, 2]


def test_pictures_that_cannot_be_written_do_not_end_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "file"
    place.write_text("")
    report = Report(place, {})
    report.open(0)
    assert "training continues" in capsys.readouterr().err
    report.classes = ["a", "b"]
    report.first_batch(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))
    assert capsys.readouterr().err == ""


def test_tensorflow_beside_it_is_never_loaded(tmp_path: Path) -> None:
    # It takes seconds and prints; here it cannot be loaded at all.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('loaded')")
    text = "import sys, pathlib; from report.report import Report; "
    text += "Report(pathlib.Path(sys.argv[1]), {}).open(0)"
    result = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_without_a_logger_only_the_log_is_there(images: Path, tmp_path: Path) -> None:
    arguments = [
        *on_folder(images, "--batchSize", "8"),
        "--expDir",
        str(tmp_path),
        "--nEpochs",
        "1",
    ]
    main.main([*arguments, "--logger", "none"])
    names = {path.name for path in (tmp_path / "folder" / "alexnetbn").iterdir()}
    assert names == {
        "best.pt",
        "checkpoints",
        "full_train.log",
        "images.npz",
        "lock",
        "log.csv",
        "log.jsonl",
        "model_1.pt",
        "options.json",
    }


def test_runs_are_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(runs / "a"), str(runs / "b"), "--out", str(tmp_path / "c.png")])
    said = capsys.readouterr().out
    assert re.search(r"histograms +nEpochs +epochs +best top-1", said)
    assert (tmp_path / "c.png").stat().st_size > 1000
    with pytest.raises(SystemExit) as stop:
        compare.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "options.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("alexnet", 0.714),
        ("vgg11", 7.609),
        ("vgg16", 15.470),
        ("googlenet", 1.498),
        ("squeezenet1_0", 0.819),
    ],
)
def test_multiply_adds_are_the_published_ones(name: str, billions: float) -> None:
    with torch.device("meta"):
        network = model.create("alexnetowt" if name == "alexnet" else name, 1000, 224)
    assert model.multiply_adds(network) / 1e9 == pytest.approx(billions, rel=0.01)


def test_colours_are_never_written(images: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "main.py",
        *on_folder(images, "--batchSize", "8"),
        "--nEpochs",
        "1",
    ]
    folder = Path(main.__file__).parent
    result = subprocess.run(
        [*command, "--expDir", str(tmp_path)],
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_a_mistake_is_shown_with_all_of_its_photograph(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    """What was cut off may be why: torchvision's resize and pad, to the right of the crop."""
    import torchvision.transforms.v2.functional as v2

    image = torch.from_numpy(photographs[0].copy()).permute(2, 0, 1)  # (3, 427, 640)
    side = 96
    crop = v2.center_crop(v2.resize(image, side, antialias=True), [side, side])
    resized = v2.resize(image, [side * 427 // 640, side], antialias=True)
    above = (side - resized.shape[1]) // 2
    whole = v2.pad(resized, [0, above, 0, side - resized.shape[1] - above])
    Image.fromarray(photographs[0]).save(tmp_path / "x.png")
    images = FileImages(["x.png"], np.zeros(1, np.int64), ["a"], str(tmp_path))
    pipeline, cpu = Pipeline([], side, side), torch.device("cpu")
    loader = data.make_loader(images, pipeline, Plan(1, 1), cpu, workers=0)
    shown = tables.beside(loader.preview(np.zeros(1, int)), loader.whole(np.zeros(1, int)))
    assert shown.shape == (1, side, 2 * side + 3, 3)
    left = shown[0, :, :side].astype(int) - crop.permute(1, 2, 0).numpy()
    right = shown[0, :, side + 3 :].astype(int) - whole.permute(1, 2, 0).numpy()
    assert max(abs(left).max(), abs(right).max()) <= 1
    assert (shown[0, :, side : side + 3] == 255).all()


def test_predictions_of_many_images_are_summed_up() -> None:
    source = FileImages(["x"], np.zeros(1, np.int64), ["a"], "")
    said = [("cat", 0.5), ("dog", 0.9), ("cat", 0.75), ("a long name", 0.25)]
    found = [Prediction("x", [(name, score)], "", source, 0) for name, score in said]
    assert predictions.summary(found).splitlines() == [
        "class        images  mean probability",
        "cat               2           62.50 %",
        "a long name       1           25.00 %",
        "dog               1           90.00 %",
    ]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["cache/folder/a", "cache/folder/b"], ["a", "b"]),
        (["a/x/run", "b/x/run"], ["a", "b"]),
        (["cache/mnist/a", "cache/folder/a"], ["mnist", "folder"]),
        (["one", "two"], ["one", "two"]),
        (["d/one", "d/more/one"], ["one", "more/one"]),
        (["cache/a"], ["cache/a"]),
        (["x/a/x", "x/b/x", "x/c/y"], ["a/x", "b/x", "c/y"]),
    ],
)
def test_runs_are_called_by_what_tells_them_apart(paths: list[str], names: list[str]) -> None:
    assert compare.short_names(paths) == names


def test_a_run_without_a_test_ranks_last() -> None:
    def history(*top1: float | None) -> list[EpochRecord]:
        return [epoch_record(test_top1=value) for value in top1]

    assert compare._best_top1(history(3.0, 7.5, None, 2.0)) == 7.5
    assert compare._best_top1(history(None, None)) < compare._best_top1(history(0.0))
    records = [
        epoch_record(test_top1=top1, epoch=n) for n, top1 in enumerate((3.0, None, 7.5, 2.0))
    ]
    # Epochs, best top-1, its epoch, last top-1.
    assert compare._metrics(records)[:4] == ["4", "7.50", "2", "2.00"]
