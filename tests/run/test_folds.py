"""--folds: what networks say of images that they were not trained on."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rig import ROOT, make_images, on_folder

import data
import main
import opts
from base.errors import Refused
from base.randomness import key
from datasets import folds
from datasets.fold import Fold
from report import pictures
from run import folds as crossed
from run.signals import Stopped
from training.metrics import suspected


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_is_left_out_once_and_classes_evenly(images: Path) -> None:
    every = data.open_images("folder", str(images), "train")
    left_out = [folds.sides(every, Fold(number, 5), 1)[1] for number in range(1, 6)]
    names = [name for side in left_out for name in side.names]
    assert sorted(names) == sorted(every.names)
    for side in left_out:
        counts = np.bincount(side.labels, minlength=3)
        assert counts.max() - counts.min() <= 1
    kept, out = folds.sides(every, Fold(2, 5), 1)
    assert not set(kept.names) & set(out.names)
    assert len(kept) + len(out) == len(every)


def test_folds_do_not_follow_the_order_of_a_listing(images: Path) -> None:
    every = data.open_images("folder", str(images), "train")
    shuffled = every.chosen(np.random.default_rng(0).permutation(len(every)))
    for number in (1, 2, 3):
        one, other = (folds.sides(part, Fold(number, 3), 7)[1] for part in (every, shuffled))
        assert sorted(one.names) == sorted(other.names)
    first, second = (folds.numbers(every, 3, seed).tolist() for seed in (1, 2))
    assert first != second


def test_folds_are_dealt_out_by_keys_of_the_names(images: Path) -> None:
    """Folds that were trained yesterday leave out the same images today."""
    every = data.open_images("folder", str(images), "train")
    place = {name: number for number, name in enumerate(every.names)}
    dealt = sorted(every.names, key=lambda name: (every.labels[place[name]], key(7, name)))
    wanted = {name: number % 3 + 1 for number, name in enumerate(dealt)}
    assert dict(zip(every.names, folds.numbers(every, 3, 7).tolist(), strict=True)) == wanted


def test_suspected_labels_are_cleanlab_s() -> None:
    reference = pytest.importorskip("cleanlab.filter")
    for seed in range(8):
        draws = np.random.default_rng(seed)
        count = int(draws.integers(2, 8))
        labels = draws.integers(0, count, 300)
        scores = draws.dirichlet(np.full(count, 0.5), 300)
        scores[np.arange(300), labels] += 0.7
        scores /= scores.sum(1, keepdims=True)
        theirs = reference.find_label_issues(labels, scores, filter_by="confident_learning")
        ours = suspected(torch.from_numpy(scores), torch.from_numpy(labels))
        assert ours.tolist() == theirs.tolist()


def test_a_wrong_label_is_found_by_a_network_that_never_saw_it(tmp_path: Path) -> None:
    # Class folders alone, without sides.
    where = make_images(tmp_path / "images", 60) / "train"
    moved = sorted((where / "class 0").iterdir())[0]
    moved.rename(where / "class 2" / f"wrong{moved.suffix}")
    command = [*on_folder(where, "--batchSize", "6", "--nEpochs", "4", "--folds", "3")]
    command += ["--netType", "alexnetbn", "--expDir", str(tmp_path / "runs")]
    main.main(command)
    out = tmp_path / "runs" / "folder" / "alexnetbn-folds"
    found = rows_of(out / "mistakes.csv")
    assert os.path.basename(found[0]["path"]).startswith("wrong")
    assert (found[0]["class"], found[0]["predicted"]) == ("class 2", "class 0")
    assert (out / "mistakes.png").stat().st_size > 1000
    table = rows_of(out / "folds.csv")
    assert sum(int(row["images"]) for row in table) == 60
    for row in table:
        assert (out.parent / row["run"] / "best.pt").exists()

    # All are trained: what is written again is the same.
    before = (out / "mistakes.csv").read_bytes()
    (out.parent / table[1]["run"] / "left_out.npz").unlink()
    main.main([*command, "--continue"])
    assert (out / "mistakes.csv").read_bytes() == before
    assert rows_of(out / "folds.csv") == table


def test_folds_that_were_stopped_go_on_with_the_command_that_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "--dataset", "synthetic", "--GPU", "-1"]
    command += ["--synthetic", "96:3:32", "--netType", "alexnetbn", "--batchSize", "8"]
    command += ["--nEpochs", "3", "--folds", "2", "--expDir", str(tmp_path), "--imageSize", "32"]
    command += ["--cropSize", "32"]
    stopped = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if line.startswith("fold 2/2"):
            break
    next(line for line in stopped.stdout if line.split()[:1] == ["1"])
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM, errors
    again = errors.strip().splitlines()[-1].removeprefix("all folds: ")
    again = again.replace("python", sys.executable, 1)
    result = subprocess.run(again, shell=True, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "2 folds: top-1" in result.stdout
    assert (tmp_path / "synthetic" / "alexnetbn-folds" / "mistakes.csv").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_fold_is_announced_and_a_stop_says_how_all_go_on(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with crossed.announced(Fold(2, 5), "the command"):
        pass
    with pytest.raises(Stopped), crossed.announced(Fold(3, 5), "the command"):
        raise Stopped(143)
    said = capsys.readouterr()
    assert said.out == ("\nfold 2/5\n\nfold 3/5\n" if rank == "0" else "")
    assert said.err == ("all folds: the command\n" if rank == "0" else "")


def left_out(path: Path, **changed: object) -> None:
    """Write what a fold of two images of two classes leaves, or something else."""
    values = {"paths": np.array(["a", "b"]), "labels": np.array([0, 1]), "worst": np.array([], int)}
    values |= {"scores": np.eye(2, dtype=np.float32), "classes": np.array(["x", "y"])}
    values |= {"pixels": np.empty(0, np.uint8)} | changed
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize("damage", ["cut", "bytes", "field", "shape"])
def test_what_a_fold_left_is_looked_at(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "fold" / "left_out.npz"
    left_out(path, **({"scores": None} if damage == "field" else {}))
    if damage == "shape":
        left_out(path, labels=np.array([0]))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    if damage == "bytes":
        path.write_bytes(path.read_bytes().replace(b"x\0\0\0y", b"x\0\0\0z"))
    with pytest.raises(Refused, match="remove it, and give --continue"):
        crossed.join([path.parent], tmp_path / "out")


@pytest.mark.parametrize("some_wrong", [True, False])
def test_what_all_folds_say_is_one_table(
    some_wrong: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sheets: list[tuple[np.ndarray, list[str]]] = []
    monkeypatch.setattr(pictures, "sheet", lambda *given: sheets.append(given[:2]))
    draws = np.random.default_rng(0)
    every = []
    for fold in (1, 2):
        # 20 of each class, surely right; of the first fold four are wrong, of the second one.
        labels = np.arange(40) % 2
        scores = np.where(labels[:, None] == [0, 1], 0.99, 0.01).astype(np.float32)
        wrong = np.array([3, 8, 9, 20] if fold == 1 else [5]) if some_wrong else np.array([], int)
        scores[wrong] = scores[wrong, ::-1] + np.float32([0.001, -0.001]) * fold
        pixels = draws.integers(0, 256, (len(wrong), 4, 4, 3), dtype=np.uint8)
        paths = np.array([f"{fold}-{number}" for number in range(40)])
        given = {"scores": scores, "labels": labels, "worst": wrong, "pixels": pixels}
        left_out(tmp_path / f"run-{fold}" / "left_out.npz", paths=paths, **given)
        every += [
            (scores[row, labels[row]], f"{fold}-{row}", labels[row], scores[row, ::-1], shown)
            for row, shown in zip(wrong, pixels, strict=True)
        ]
    out = tmp_path / "out"
    out.mkdir()
    (out / "mistakes.png").write_text("of other folds")
    crossed.join([tmp_path / "run-1", tmp_path / "run-2"], out)
    said = capsys.readouterr().out
    assert rows_of(out / "folds.csv") == [
        {"fold": "1", "images": "40", "top1": f"{90 if some_wrong else 100:.4f}", "run": "run-1"},
        {"fold": "2", "images": "40", "top1": f"{97.5 if some_wrong else 100:.4f}", "run": "run-2"},
    ]
    mistakes = rows_of(out / "mistakes.csv")
    every.sort(key=lambda mistake: mistake[0])
    assert [row["path"] for row in mistakes] == [path for _, path, *_ in every]
    # All are wrong surely enough for confident learning.
    assert [row["confident"] for row in mistakes] == ["yes"] * len(every)
    spread = np.std([90, 97.5], ddof=1)
    told = f"top-1 93.75 +- {spread:.2f} %" if some_wrong else "top-1 100.00 +- 0.00 %"
    assert f"2 folds: {told} of images that were left out; {len(every)} of 80 are taken" in said
    assert (out / "mistakes.png").exists() is False or some_wrong
    if some_wrong:
        ((images, titles),) = sheets
        every.sort(key=lambda mistake: mistake[:2])
        assert np.array_equal(images, np.stack([mistake[4] for mistake in every]))
        for (_, path, label, scores, _), title in zip(every, titles, strict=True):
            of, taken = ("x", "y") if label == 0 else ("y", "x")
            assert title == f"{path}\ntrue: {of}\nsaid: {taken} {100 * scores.max():.1f} %"


def test_a_doubtful_mistake_is_not_called_confident(tmp_path: Path) -> None:
    # Taken for the other class, but less surely than those that are of it.
    scores = np.array([[0.9, 0.1], [0.1, 0.9], [0.45, 0.55]], np.float32)
    for fold in (1, 2):
        paths = np.array([f"{fold}-{number}" for number in range(3)])
        given = {"scores": scores, "labels": np.array([0, 1, 0]), "paths": paths}
        left_out(tmp_path / f"{fold}" / "left_out.npz", **given)
    crossed.join([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "mistakes.csv")
    assert [(row["path"], row["confident"]) for row in rows] == [("1-2", ""), ("2-2", "")]


def test_an_image_in_two_folds_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        left_out(tmp_path / name / "left_out.npz")
    with pytest.raises(Refused, match="2 images lie in two folds"):
        crossed.join([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_folds_of_other_options_are_not_mixed(tmp_path: Path) -> None:
    """As where some are of before, and --overwrite was stopped among them."""
    options = opts.parse(["--dataset", "folder", "--data_dir", "d", "--folds", "2"])
    for name, more in (("1", {}), ("2", {"fold": "2/2", "nThreads": 9, "GPU": 3, "nEpochs": 7})):
        (tmp_path / name).mkdir()
        told = {"options": options.recorded() | more}
        (tmp_path / name / "options.json").write_text(json.dumps(told))
    places = [tmp_path / "1", tmp_path / "2"]
    crossed.refuse_different(places, options.may_differ)
    # Epochs that were given are not what the number of images decides.
    given = opts.parse(["--dataset", "folder", "--data_dir", "d", "--folds", "2", "--nEpochs", "5"])
    with pytest.raises(Refused, match=r"with --nEpochs .* and .*: train all folds again"):
        crossed.refuse_different(places, given.may_differ)
    told = {"options": options.recorded() | {"LR": 0.5}}
    (tmp_path / "2" / "options.json").write_text(json.dumps(told))
    with pytest.raises(Refused, match=r"with --LR 0.5 and null: train all folds again with --over"):
        crossed.refuse_different(places, options.may_differ)


def test_a_fold_is_its_number_of_so_many() -> None:
    assert Fold.parse("2/5") == Fold(number=2, of=5)
    assert str(Fold(2, 5)) == "2/5"
    assert Fold(2, 5).suffix == "fold-2-of-5"
    assert Fold.all(2) == [Fold(1, 2), Fold(2, 2)]


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "2", "a/b", "1/2/3"])
def test_a_fold_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main.main(["--dataset", "synthetic", "--fold", text])
    assert error.value.code == 2
    assert f"argument --fold: '{text}' is not N/OF" in capsys.readouterr().err


def test_pixels_that_are_read_batch_by_batch_have_no_folds() -> None:
    class Stored:
        where, pixels, labels = "x.h5", object(), np.arange(8)

        def __len__(self) -> int:
            return 8

    with pytest.raises(Refused, match=r"x.h5 is read batch by batch: folds need --storage ram"):
        folds._chosen(Stored(), np.arange(3))  # type: ignore[arg-type]
