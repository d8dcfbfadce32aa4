"""`--test` needs the weights and the images alone, and takes everything else from the weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from common import DATA, refused_with
from PIL import Image

import main
from base import archive

SMALL = ["--dataset", "folder", "--GPU", "-1", "--nThreads", "0", "--logger", "none"]
LEVELS = {"cat": 60, "dog": 120, "emu": 190}


def solid(root: Path, names: dict[str, int], *parts: str, turned: int = 1) -> Path:
    """Write images of one grey level a class, which a network learns at once."""
    exif = Image.Exif()
    exif[0x0112] = turned
    for part in parts:
        for name, level in names.items():
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                noise = np.random.default_rng(number).normal(level, 8, (40, 52, 3))
                pixels = np.clip(noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png", exif=exif)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights trained at 36 -> 28, bicubic, with the fine stem."""
    place = tmp_path_factory.mktemp("trained")
    data = solid(place / "en", LEVELS, "train", "val")
    sizes = "--imageSize 36 --cropSize 28 --interpolation bicubic --stem fine --batchSize 12"
    training = "--nEpochs 4 --LR 0.01 --augment none --netType alexnetbn --snapshot 0"
    options = [*SMALL, *sizes.split(), *training.split(), "--data_dir", str(data)]
    main.main([*options, "--expDir", str(place / "runs"), "--expID", "r"])
    return place / "runs" / "folder" / "r" / "model_4.pt"


def result_of(weights: Path, data: Path, *more: str) -> dict:
    """Test alone; return what test.json says."""
    runs = data.parent / "tests"
    options = [*SMALL, "--test", "--retrain", str(weights), "--data_dir", str(data)]
    main.main([*options, "--expDir", str(runs), *more])
    name = more[more.index("--expID") + 1] if "--expID" in more else "alexnetbn"
    return json.loads((runs / "folder" / f"{name}-test" / "test.json").read_text())


def test_everything_comes_from_the_weights(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((trained.parent / "log.jsonl").read_text().splitlines()[-1])
    data = solid(tmp_path / "en", LEVELS, "val")
    capsys.readouterr()
    found = result_of(trained, data, "--batchSize", "12")
    for name in ("test_loss", "test_top1", "test_top5", "test_map"):
        assert found[name] == before[name]
    said = capsys.readouterr().out
    assert "pixels    36 -> 28, bicubic" in said
    assert not re.search("epoch|training|learning rate|resume", said)
    # What is given goes before.
    result_of(trained, data, "--imageSize", "40", "--expID", "b")
    assert "pixels    40 -> 28, bicubic" in capsys.readouterr().out


def test_digits_are_tested_as_while_training(tmp_path: Path) -> None:
    """They have one test part, whose images are not chosen from a folder."""
    digits = ["--dataset", "mnist", "--data_dir", str(DATA / "mnist"), "--nThreads", "0"]
    same = [*digits, "--batchSize", "32", "--GPU", "-1", "--expDir", str(tmp_path)]
    same += ["--limit", "64"]
    main.main([*same, "--nEpochs", "1"])
    run = tmp_path / "mnist" / "alexnetbn"
    logged = json.loads((run / "log.jsonl").read_text())
    main.main([*same, "--test", "--retrain", str(run / "best.pt")])
    found = json.loads((tmp_path / "mnist" / "alexnetbn-test" / "test.json").read_text())
    for name in ("test_loss", "test_top1"):
        assert found[name] == logged[name]


def test_a_folder_of_some_classes_keeps_the_weights_own_numbers(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = {name: LEVELS[name] for name in ("emu", "dog")}
    assert result_of(trained, solid(tmp_path / "two", some, "test"))["test_top1"] == 100
    assert "1 classes have no test image: cat" in capsys.readouterr().out
    # One class alone, and class folders without a part.
    assert result_of(trained, solid(tmp_path / "one", {"emu": 190}, "."))["test_top1"] == 100


def test_names_that_the_weights_lack_are_refused(trained: Path, tmp_path: Path) -> None:
    french = {"chat": 60, "autruche": 190, "zchien": 120}
    with refused_with("'autruche', 'chat', 'zchien'.*'cat', 'dog', 'emu'"):
        result_of(trained, solid(tmp_path / "fr", french, "train", "val"))


def test_the_other_part_is_tested_on_request(trained: Path, tmp_path: Path) -> None:
    data = solid(tmp_path / "d", LEVELS, "val", "test")
    shutil.rmtree(data / "test" / "cat")
    swapped = {"dog": 190, "emu": 120}
    solid(data, swapped, "test")
    assert result_of(trained, data)["test_top1"] == 100
    assert result_of(trained, data, "--part", "test")["test_top1"] == 0
    with refused_with("no folder test/"):
        result_of(trained, solid(tmp_path / "e", LEVELS, "val"), "--part", "test")


def test_a_random_last_layer_is_never_tested(trained: Path, tmp_path: Path) -> None:
    import torch

    state = archive.read(trained)["network"]
    body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    bare = tmp_path / "bare.pth"
    torch.save(body, bare)
    four = solid(tmp_path / "four", LEVELS | {"fox": 10}, "train", "val")
    sizes = ["--imageSize", "36", "--cropSize", "28", "--stem", "fine"]
    with refused_with("made for another number of classes.*would be random"):
        result_of(bare, four, *sizes)


def test_retraining_says_what_is_kept(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(names: dict[str, int], run: str) -> str:
        data = solid(tmp_path / run, names, "train", "val")
        more = ["--nEpochs", "1", "--stem", "fine", "--imageSize", "36", "--cropSize", "28"]
        options = [*SMALL, *more, "--retrain", str(trained), "--data_dir", str(data)]
        main.main([*options, "--expDir", str(tmp_path / "runs"), "--expID", run])
        output = capsys.readouterr().out
        return next(line for line in output.splitlines() if line.startswith("weights "))

    assert said(LEVELS, "same").endswith("tensors kept, with mean and deviation")
    renamed = {"chat": 60, "chien": 120, "emeu": 190}
    assert "trained for cat, dog, emu and not for chat, chien, emeu" in said(renamed, "renamed")
    assert re.search(r"at random: body.*\.weight, body.*\.bias", said({"a": 1, "b": 99}, "two"))


def test_a_turn_is_remembered_by_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = solid(tmp_path / "d", LEVELS, "train", "val", turned=6)
    more = ["--nEpochs", "1", "--imageSize", "36", "--cropSize", "28", "--snapshot", "0"]
    # Sums over batches of one size: the same bits.
    batch = ["--batchSize", "32"]
    options = [*SMALL, *more, *batch, "--data_dir", str(data), "--expDir", str(tmp_path / "runs")]
    main.main([*options, "--expID", "ignored"])
    assert "48 of 48 files looked at carry a turn, ignored" in capsys.readouterr().out
    main.main([*options, "--expID", "applied", "--exif", "apply"])
    assert "carry a turn, followed" in capsys.readouterr().out
    for run, exif in (("ignored", "ignore"), ("applied", "apply")):
        weights = tmp_path / "runs" / "folder" / run / "model_1.pt"
        assert archive.read(weights)["model"]["exif"] == exif
        logged = json.loads((weights.parent / "log.jsonl").read_text())
        tested = result_of(weights, data, "--expID", run, *batch)
        assert tested["test_loss"] == logged["test_loss"]
