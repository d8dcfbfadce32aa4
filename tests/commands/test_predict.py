"""A weights file alone is enough to test it again and to name images."""

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from common import DATA, Terminal, typed
from PIL import Image
from rig import make_images, on_folder

import main
import model
import predict
import prepare
from datasets import given
from datasets.images import Limits


@pytest.fixture
def trained(images: Path, tmp_path: Path) -> Path:
    main.main(
        [
            *on_folder(images, "--batchSize", "8", "--nEpochs", "8"),
            "--expDir",
            str(tmp_path / "runs"),
        ]
    )
    return tmp_path / "runs" / "folder" / "alexnetbn"


def test_a_test_alone_gives_the_figures_of_the_last_test(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    arguments = [
        *on_folder(images, "--batchSize", "8"),
        "--expDir",
        str(tmp_path / "runs"),
    ]
    for _ in range(2):
        main.main([*arguments, "--test", "--retrain", str(trained / "model_8.pt")])
    found = json.loads((tmp_path / "runs" / "folder" / "alexnetbn-test" / "test.json").read_text())
    last = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])
    for name in ("test_loss", "test_top1", "test_top5", "test_map"):
        assert found[name] == last[name]


def test_images_are_named_and_bad_ones_too(
    trained: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[:, :, 0] = 160
    Image.fromarray(red).save(tmp_path / "red.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "out.csv"
    with pytest.raises(SystemExit) as stop:
        predict.main(
            [
                str(trained / "best.pt"),
                str(tmp_path / "red.png"),
                str(tmp_path / "bad.jpg"),
                str(images / "val"),
                "--top",
                "2",
                "--csv",
                str(out),
            ]
        )
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert "bad.jpg: not a JPEG" in said.err
    assert "red.png: class " in said.out
    lines = out.read_text().splitlines()
    assert lines[0] == "path,rank,class,probability"
    assert len(lines) == 1 + 2 * (1 + 9)
    monkeypatch.setattr("sys.stdin", typed(f"{tmp_path / 'red.png'}\n".encode()))
    with pytest.raises(SystemExit) as stop:
        predict.main(
            [
                str(
                    trained
                    / "checkpoints"
                    / max(p.name for p in (trained / "checkpoints").iterdir())
                ),
                "-",
            ]
        )
    assert stop.value.code == 0


def test_what_holds_no_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    for name in ("x.pt", "missing.pt"):
        with pytest.raises(SystemExit) as stop:
            predict.main([str(tmp_path / name), "image.jpg"])
        assert stop.value.code == 2
        assert name in capsys.readouterr().err


def test_images_in_containers_are_predicted_as_files_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_images(tmp_path / "d", 6)
    run = [*on_folder(place, "--batchSize", "6", "--nEpochs", "1"), "--expDir", str(tmp_path / "r")]
    main.main(run)
    weights = str(tmp_path / "r" / "folder" / "alexnetbn" / "best.pt")
    prepare.main(["pack", "--data_dir", str(place), "--out", str(tmp_path / "s")])
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in sorted(place.rglob("*.jpg")):
            archive.write(path, str(path.relative_to(place)))
    (tmp_path / "t").mkdir()
    shutil.copy(tmp_path / "s" / "train-000000.tar", tmp_path / "t" / "any.tar")
    capsys.readouterr()
    answers = []
    for where in ("d/train", "s/train-{000000..000000}.tar", "d.zip/train", "t"):
        with pytest.raises(SystemExit) as ended:
            predict.main([weights, str(tmp_path / where)])
        assert ended.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        answers.append([line.rpartition(".jpg: ")[2] for line in lines])
    assert len(answers[0]) == 6
    assert answers[1:] == [answers[0]] * 3


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("output", [Terminal, io.StringIO])
def test_five_classes_are_said_and_many_images_summed_up_on_a_terminal(
    count: int, output: type[io.StringIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = model.create("resnet9xs", [f"c{number}" for number in range(7)], 32).eval()
    monkeypatch.setattr(model, "load", lambda _: network)
    for number in range(count):
        Image.new("RGB", (40, 40), (90 * number, 9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    said = output()
    monkeypatch.setattr("sys.stdout", said)
    with pytest.raises(SystemExit) as stop:
        predict.main(["weights.pt", str(tmp_path)])
    assert stop.value.code == 0
    lines = said.getvalue().splitlines()
    for number in range(count):
        assert lines[number].startswith(f"{tmp_path / f'{number}.png'}: c")
        assert lines[number].count("%") == 5
    said.seek(0)
    said.truncate()
    with pytest.raises(SystemExit) as stop:
        predict.main(["weights.pt", str(tmp_path / "0.png"), "--top", "1"])
    assert (stop.value.code, said.getvalue().count("%")) == (0, 1)
    summed = count > 1 and output is Terminal
    assert (len(lines) > count) is summed
    assert not summed or lines[count + 1].startswith("class ")


def test_what_is_left_out_of_a_folder_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "notes.heic").write_text("no image")
    (found,) = given.sources([str(tmp_path)], Limits())
    assert len(found) == 1
    assert re.fullmatch(rf"{tmp_path}.*1 .*\n", capsys.readouterr().err)


def test_a_folder_of_shards_is_read_as_they_are(tmp_path: Path) -> None:
    place = shutil.copytree(DATA / "containers" / "wds-cls", tmp_path / "shards")
    found = list(given.sources([str(place)], Limits()))
    one_by_one = list(given.sources([str(path) for path in sorted(place.glob("*.tar"))], Limits()))
    assert sum(map(len, found)) == sum(map(len, one_by_one)) > 0
    assert found[0].read(0) == one_by_one[0].read(0)
