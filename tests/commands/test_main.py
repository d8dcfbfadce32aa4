"""Whole runs as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from common import DATA, ROOT
from rig import on_folder

import configs
import main
import model
import opts
import utils
from base import archive
from base.errors import clear_errors
from loading.plan import Plan
from loading.workers import Reader, Task
from training.ranks import Ranks
from training.step import Step

SMALL = ["--GPU", "-1", "--nEpochs", "1", "--nThreads", "0"]
KEYS = {
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_top1",
    "train_top5",
    "test_loss",
    "test_top1",
    "test_top5",
    "test_map",
    "images_per_second",
    "data_seconds",
    "compute_seconds",
    "test_seconds",
    "seconds",
    "peak_memory_bytes",
}


def log_of(folder: Path) -> list[dict]:
    return [
        json.loads(line) for line in next(folder.glob("*/*/log.jsonl")).read_text().splitlines()
    ]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """Run main.py in this process; return its one line on stderr."""
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
        main.main(arguments)
    assert stop.value.code == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_digits_are_learnt_by_one_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "main.py",
        "--dataset",
        "mnist",
        "--data_dir",
        str(DATA / "mnist"),
        "--nEpochs",
        "6",
    ]
    command += ["--batchSize", "32", "--GPU", "-1", "--expDir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    log = log_of(tmp_path)
    assert [record["epoch"] for record in log] == [1, 2, 3, 4, 5, 6]
    assert log[0].keys() == KEYS
    assert log[-1]["test_top1"] > 60
    run = tmp_path / "mnist" / "alexnetbn"
    assert {
        "options.json",
        "log.jsonl",
        "full_train.log",
        "best.pt",
        "model_5.pt",
        "model_6.pt",
    } <= {p.name for p in run.iterdir()}
    assert json.loads((run / "options.json").read_text())["options"]["nEpochs"] == 6
    losses = (run / "full_train.log").read_text().splitlines()
    assert len(losses) == log[-1]["step"] == 6 * 13
    statistics = json.loads((tmp_path / "mnist" / "statistics.json").read_text())
    assert len(next(iter(statistics.values()))["mean"]) == 3


def test_a_folder_and_its_weights(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *on_folder(images, "--nEpochs", "1"),
    ]
    main.main([*arguments, "--expDir", str(tmp_path / "a"), "--batchSize", "8"])
    best = next((tmp_path / "a").glob("*/*/best.pt"))
    more = ["--expDir", str(tmp_path / "b"), "--retrain", str(best)]
    main.main([*arguments, *more])
    mean = archive.read(best)["network"]["normalise.mean"]
    assert torch.equal(
        archive.read(next((tmp_path / "b").glob("*/*/best.pt")))["network"]["normalise.mean"], mean
    )
    assert not (tmp_path / "b" / "folder" / "statistics.json").exists()
    said = refused([*arguments, "--expDir", str(tmp_path / "a")], capsys)
    assert all(word in said for word in ("--continue", "--overwrite", "--expID"))
    main.main([*arguments, "--expDir", str(tmp_path / "a"), "--overwrite"])
    said = refused([*arguments, *more, "--netType", "vgg", "--expID", "x"], capsys)
    assert "holds alexnetbn, not vgg" in said
    assert not (tmp_path / "b" / "folder" / "x").exists()


def test_one_image_over_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(
        [
            "--dataset",
            "synthetic",
            "--synthetic",
            "17:4:20",
            *SMALL,
            "--batchSize",
            "8",
            "--expDir",
            str(tmp_path),
        ]
    )
    assert "left out" in capsys.readouterr().out
    assert log_of(tmp_path)[0]["step"] == 2


def test_a_class_without_test_images_is_warned_of(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (images / "val" / "class 1").iterdir():
        path.unlink()
    (images / "val" / "class 1").rmdir()
    arguments = [
        *on_folder(images, "--nEpochs", "1"),
    ]
    main.main([*arguments, "--expDir", str(tmp_path)])
    assert "warning: 1 classes have no test image: class 1" in capsys.readouterr().out
    assert log_of(tmp_path)[0]["test_map"] is not None


def test_without_imagenet_there_is_a_way_to_start(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--GPU", "-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert all(
        word in result.stderr
        for word in ("./data/ilsvrc2012/train", "--data_dir", "--dataset mnist")
    )
    assert list(tmp_path.iterdir()) == []


def test_bad_input_ends_with_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*SMALL, "--expDir", str(tmp_path / "runs")]
    folder = [
        "--dataset",
        "folder",
        "--data_dir",
        str(images),
        "--imageSize",
        "24",
        "--cropSize",
        "20",
        *common,
    ]
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    assert "weights.pt" in refused([*folder, "--retrain", str(tmp_path / "weights.pt")], capsys)
    assert "cannot read" in refused([*folder, "--retrain", str(tmp_path / "none.pt")], capsys)
    assert "no folder train/" in refused(
        ["--dataset", "folder", "--data_dir", str(tmp_path), *common], capsys
    )
    if not torch.cuda.is_available():
        said = refused([*folder, "--GPU", "0", "--nGPU", "2"], capsys)
        assert "this machine has 0" in said
    (images / "train" / "class 0" / "0.jpg").write_bytes(b"this is no image")
    assert "class 0/0.jpg" in refused(folder, capsys)
    assert not list((tmp_path / "runs").rglob("*.pt"))


def test_one_process_on_one_device_wraps_nothing() -> None:
    network = torch.nn.Linear(2, 2)
    run = SimpleNamespace(ranks=Ranks(), step=Step(torch.device("cpu")))
    options = opts.parse(["--dataset", "mnist"])
    assert configs.make_parallel(options, run, network) is network  # type: ignore[arg-type]


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path: Path) -> None:
    ours = utils.load_ours("statistics")
    images = torch.randint(
        0, 256, (50, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    mean, std = ours.measure([images[:20], images[20:]])
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-12)
    path = str(tmp_path / "x" / "statistics.json")
    assert ours.cached(path, "key", lambda: (mean, std)) == (mean, std)
    assert ours.cached(path, "key", lambda: 1 / 0) == (mean, std)
    Path(path).write_text("{ broken")
    assert ours.cached(path, "key", lambda: (mean, std)) == (mean, std)


def test_a_folder_is_the_same_by_whatever_path(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statistics are measured once."""
    digits, runs = DATA / "mnist", tmp_path / "runs"
    for place, dataset in ((images, "folder"), (digits, "mnist")):
        monkeypatch.chdir(place.parent)
        (link := tmp_path / dataset).symlink_to(place)
        for number, path in enumerate((Path(place.name), place / ".." / place.name, link)):
            more = ["--nEpochs", "1", "--limit", "32", "--batchSize", "16"]
            arguments = [*on_folder(path, *more), "--expID", str(number), "--expDir", str(runs)]
            main.main([*arguments, "--dataset", dataset])
        statistics = json.loads((runs / dataset / "statistics.json").read_text())
        assert len(statistics) == 1, dataset


def test_torchvisions_network_says_that_images_are_too_small(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*on_folder(images), "--netType", "inception_v3", "--expDir", str(tmp_path)]
    said = refused([*arguments, "--imageSize", "80", "--cropSize", "80"], capsys)
    assert "inception_v3 cannot take images of 80 x 80 pixels" in said
    assert "--cropSize" in said


def test_statistics_is_a_script_of_its_own(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "statistics.py",
        "--dataset",
        "mnist",
        "--data_dir",
        str(DATA / "mnist"),
        "--expDir",
        str(tmp_path),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["mean"][0] == pytest.approx(0.13, abs=0.01)


@pytest.mark.parametrize("wrong", ["--dataset=mnits", "--dtaset"])
def test_a_wrong_call_of_statistics_names_statistics(wrong: str) -> None:
    command = [sys.executable, "statistics.py", wrong]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("statistics.py: error: ")
    assert "main.py" not in result.stderr


def test_ten_crops_give_the_same_figures_in_batches_of_any_size(
    images: Path, tmp_path: Path
) -> None:
    arguments = [
        *on_folder(images, "--nEpochs", "1"),
        "--tenCrop",
    ]
    arguments += [
        "--netType",
        "vgg",
        "--LR",
        "0",
        "--weightDecay",
        "0",
    ]  # without batch norm nothing changes the weights
    figures = []
    for size in ("24", "5"):
        main.main([*arguments, "--batchSize", size, "--expDir", str(tmp_path / size)])
        figures.append(log_of(tmp_path / size)[0])
    assert figures[0]["test_top1"] == figures[1]["test_top1"]
    assert figures[0]["test_loss"] == pytest.approx(figures[1]["test_loss"], rel=1e-5)


def test_ten_crop_probabilities_are_the_mean_of_ten() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    crops = torch.rand(3, 5, 3, 4, 4)
    every = [part for place in range(5) for part in (crops[:, place], crops[:, place].flip(3))]
    expected = torch.stack([network(part).softmax(1) for part in every]).mean(0)
    with torch.no_grad():
        torch.testing.assert_close(main.log_probabilities(network, crops).exp(), expected.detach())
        torch.testing.assert_close(
            main.log_probabilities(network, crops[1:2]).exp(), expected[1:2].detach()
        )


def test_mirror_images_count_as_much_as_the_images() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    images = torch.rand(3, 3, 4, 4)
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    expected = (network(images).softmax(1) + network(mirrored).softmax(1)) / 2
    with torch.no_grad():
        found = main.log_probabilities(network, images, mirrored=True).exp()
    torch.testing.assert_close(found, expected.detach())


def test_a_run_tests_on_mirror_images_where_it_is_asked_to(images: Path, tmp_path: Path) -> None:
    arguments = [*on_folder(images, "--nEpochs", "1"), "--netType", "vgg", "--LR", "0"]
    arguments += ["--weightDecay", "0", "--precision", "fp32"]
    main.main([*arguments, "--expDir", str(tmp_path / "plain")])
    main.main([*arguments, "--flipTest", "--expDir", str(tmp_path / "mirrored")])
    network = model.load(str(next(tmp_path.glob("plain/*/*/best.pt"))))
    _, test = configs.open_both(opts.parse(arguments))
    pipeline = configs.make_test_pipeline(opts.parse(arguments))
    reader = Reader(test, pipeline, Plan(len(test), len(test)), finishes=False)
    pixels, indices, _ = reader[Task(0, 0)]
    with torch.no_grad():
        both = network(pixels).softmax(1) + network(pixels.flip(3)).softmax(1)
    loss = -(both / 2).log()[range(len(test)), test.labels[indices.numpy()]].mean().item()
    assert log_of(tmp_path / "mirrored")[0]["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert log_of(tmp_path / "plain")[0]["test_loss"] != pytest.approx(loss, rel=1e-5)


def test_continue_where_nothing_was_saved_starts_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(
        [
            "--dataset",
            "synthetic",
            "--synthetic",
            "16:4:20",
            *SMALL,
            "--expDir",
            str(tmp_path),
            "--continue",
        ]
    )
    assert "nothing was saved here yet" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["synthetic", "folder"])
def test_the_command_line_trains(dataset: str, images: Path, tmp_path: Path) -> None:
    more = (
        ["--synthetic", "32:4:24"]
        if dataset == "synthetic"
        else ["--data_dir", str(images), "--nThreads", "2"]
    )
    command = [
        sys.executable,
        "main.py",
        "--dataset",
        dataset,
        *more,
        "--imageSize",
        "24",
        "--cropSize",
        "20",
        "--nEpochs",
        "1",
    ]
    command += ["--batchSize", "8", "--GPU", "-1", "--expDir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "best test top-1" in result.stdout
    assert log_of(tmp_path)[0].keys() == KEYS


def test_ten_crops_that_are_all_sure_of_something_else_have_a_finite_loss() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[500.0] * 3, [-500.0] * 3]))
        logarithms = main.log_probabilities(network, torch.ones(1, 5, 3, 1, 1))
    assert logarithms.isfinite().all()


ELSEWHERE = """
import ctypes, os, shutil, sys
del os.sched_getaffinity, os.sched_setaffinity
usage, load = shutil.disk_usage, ctypes.CDLL
def no_shared_memory(path):
    if str(path) == "/dev/shm":
        raise FileNotFoundError(path)
    return usage(path)
shutil.disk_usage = no_shared_memory
ctypes.CDLL = lambda name, *more, **named: object() if name is None else load(name, *more, **named)
sys.path.insert(0, os.getcwd())
import main
main.main(sys.argv[1:])
"""


def test_a_system_without_linux_s_own_calls_trains_too(tmp_path: Path) -> None:
    arguments = ["--dataset", "mnist", "--data_dir", str(DATA / "mnist"), "--limit", "64"]
    arguments += ["--nEpochs", "1", "--GPU", "-1", "--logger", "none", "--expDir", str(tmp_path)]
    command = [sys.executable, "-c", ELSEWHERE]
    for words in (arguments, ["--help"]):
        result = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-1500:]
