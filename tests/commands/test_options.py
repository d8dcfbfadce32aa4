"""Wrong calls answer at once, in one line that says what is allowed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT

import main
import model
import opts
from base.arguments import nearest
from base.errors import clear_errors

WRONG = [
    (["--netType", "alexnetbm"], ["--netType", "alexnetbn"]),
    (["--netType", "resnet5"], ["resnet50"]),
    (["--netTyp", "vgg"], ["--netTyp", "--netType"]),
    (["--dataset", "mnits"], ["--dataset", "mnist"]),
    (["--batchSize", "0"], ["--batchSize", "at least 1"]),
    (["--batchSize", "many"], ["--batchSize", "whole number"]),
    (["--LR", "nan"], ["--LR", "number"]),
    (["--backend", "cudn"], ["--backend", "cudnn"]),
    (["--cropSize", "300", "--imageSize", "256"], ["--cropSize 300", "--imageSize 256"]),
    (["--cropSize", "8", "--imageSize", "8"], ["--cropSize 8", "smallest is 16"]),
    (["--augment", "flipp"], ["--augment", "'flip'"]),
    (["--augment", "jitter:7"], ["strength", "0 to 1"]),
    (["--augment", "crop,crop"], ["twice"]),
    (["--saveEvery", "soon"], ["--saveEvery", "10m"]),
    (["--synthetic", "3"], ["--synthetic", "512:10:256"]),
    (["--expID", "a/b"], ["--expID"]),
    (["--continue", "--overwrite"], ["--continue", "--overwrite"]),
    (["@missing.txt"], ["missing.txt"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_a_wrong_call_is_one_line_with_the_way_out(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        opts.parse(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


def test_help_and_wrong_options_need_no_torch() -> None:
    code = "import sys, opts; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    for arguments, status in ((["--help"], 0), (["--netTyp", "x"], 2)):
        result = subprocess.run(
            [sys.executable, "-X", "importtime", "main.py", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == status
        assert "torch" not in [line.split("|")[-1].strip() for line in result.stderr.splitlines()]


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        opts.parse(["--help"])
    said = capsys.readouterr().out
    for name in opts.FIELDS:
        assert f"--{name.rstrip('_')}" in said
    assert said.count("(default:") == len(opts.FIELDS)


def test_the_data_set_decides_what_is_not_given() -> None:
    digits, photos = opts.parse(["--dataset", "mnist"]), opts.parse([])
    assert (digits.imageSize, digits.cropSize, digits.expID) == (28, 28, "alexnetbn")
    assert "flip" not in digits.augment
    assert (photos.dataset, photos.imageSize, photos.cropSize, photos.nEpochs) == (
        "ilsvrc2012",
        256,
        224,
        55,
    )


def test_the_command_line_wins_over_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.txt"
    recipe.write_text("# reaches nothing\n--dataset mnist  # digits\n--nEpochs 7\n--LR 0.5\n")
    options = opts.parse(["--nEpochs", "3", f"@{recipe}"])
    assert (options.dataset, options.nEpochs, options.LR) == ("mnist", 3, 0.5)


HOSTILE = {
    "letters": b"--netType \xff\xfe",
    "quote": b"--expID 'a",
    "long": b"#" * (2 << 20),
    "nested": b"@other",
    "line": b'--expID "a\nb"',
    "colour": b"--netType \x1b[31mred",
    "outside": b"--expID ../../x",
}


@pytest.mark.parametrize("name", [*HOSTILE, "pipe", "device", "folder"])
def test_a_hostile_recipe_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    if name in HOSTILE:
        path.write_bytes(HOSTILE[name])
    elif name == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero") if name == "device" else tmp_path
    with pytest.raises(SystemExit) as error:
        opts.parse([f"@{path}"])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_continue_takes_the_run_s_own_options_and_tells_what_changed(tmp_path: Path) -> None:
    first = opts.parse(
        ["--dataset", "mnist", "--expDir", str(tmp_path), "--batchSize", "32", "--LR", "0.25"]
    )
    first.folder.mkdir(parents=True)
    (first.folder / "options.json").write_text(json.dumps({"options": first.recorded()}))
    again = opts.parse(
        ["--dataset", "mnist", "--expDir", str(tmp_path), "--continue", "--batchSize", "64"]
    )
    assert (again.LR, again.batchSize) == (0.25, 64)
    assert again.changed == {"batchSize": (32, 64)}


def test_nearest_names() -> None:
    assert nearest("VGG61", ["vgg16", "alexnet"]) == "; did you mean 'vgg16'?"
    assert nearest("zzz", ["vgg16"]) == ""


# Training images and classes of the published sets.
IMAGES = {"ilsvrc2012": (1_281_167, 1000), "cifar10": (50_000, 10), "cifar100": (50_000, 100)}
IMAGES |= {"mnist": (60_000, 10), "fashionmnist": (60_000, 10)}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*.txt")), ids=lambda path: path.stem
)
def test_every_recipe_is_read_and_says_what_it_reaches(path: Path) -> None:
    options = opts.parse([f"@{path}"])
    assert path.stem in (f"{options.netType}-{options.dataset}", "my-folder")
    if path.stem != "my-folder":
        text = path.read_text()
        assert all(word in text for word in ("# Published:", "# Source:", "# Reached here:"))
        assert f"# Command: python main.py @recipes/{path.name}" in text
        # Multiply-adds are two operations each, in forward and twice in backward passes.
        hours = re.search(r"^# Estimate: (\S+) GPU-hours at 100 TFLOP/s", text, re.MULTILINE)
        assert hours
        images, count = IMAGES[options.dataset]
        names = tuple(str(number) for number in range(count))
        sizes = options.imageSize, options.cropSize
        network = model.build(model.Spec(options.netType, names, *sizes, options.stem))
        operations = 3 * 2 * model.multiply_adds(network) * images * options.nEpochs
        assert float(hours[1]) == pytest.approx(operations / 1e14 / 3600, rel=0.06)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
        main.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


TOGETHER = [
    (["--GPU", "-1", "--nGPU", "2"], "the CPU, which is one device"),
    (["--batchSize", "1"], "--batchSize 1: alexnetbn has batch norm"),
    (["--limit", "1"], "--limit"),
    (["--freeze", "99"], "name fewer"),
    (["--synthetic", "99999999999:4:32"], "ask for fewer"),
    (["--expDir", "/proc/nothing"], "--expDir"),
    (["--expID", "a" * 300], "--expID"),
]


@pytest.mark.parametrize(("arguments", "words"), TOGETHER)
def test_wrong_values_together_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--dataset",
        "synthetic",
        "--synthetic",
        "16:4:20",
        "--GPU",
        "-1",
        "--nEpochs",
        "1",
        "--expDir",
        str(tmp_path),
    ]
    said = refused([*common, *arguments], capsys)
    assert words in said
    assert said.count("\n") == 1


def test_the_fine_stem_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--netType", "resnet18", "--stem", "fine"],
        ["--saveEvery", "²"],
        ["--freeze", "²"],
    ):
        with pytest.raises(SystemExit):
            opts.parse(arguments)
        assert arguments[-2] in capsys.readouterr().err


def test_help_names_the_defaults_of_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        opts.parse(["--help"])
    # Lines are wrapped at blanks and hyphens.
    said = "".join(capsys.readouterr().out.split())
    documents = (ROOT / "docs" / "options.md").read_text()
    rows = re.findall(r"^\| `(--\w+)`[^|]*\| (.+?) \| (.+?) \|$", documents, re.M)
    assert len(rows) > 80
    for option, default, meaning in rows:
        about, shown = meaning.replace(" ", ""), default.replace(" ", "")
        found = re.search(f"{option}.{{0,60}}?{re.escape(about)}.*?\\(default:(.*)", said)
        assert found, option
        assert found[1].startswith(f"{shown})"), option
