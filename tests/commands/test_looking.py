"""What predict.py finds in labelled images: mistakes, features, likeness, where the network looks;
and runs ranked by compare.py.
"""

import csv
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import typed
from PIL import Image
from rig import make_images, on_folder
from torch import nn

import compare
import export
import main
import model
import predict
import prepare
from datasets import given
from datasets.images import Limits
from models.explain import features, heatmaps
from report.contact import signed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ of three colours, of which one label is wrong, and a run on them."""
    folder = tmp_path_factory.mktemp("looking")
    images = make_images(folder / "images", 48)
    wrong = images / "train" / "class 1" / "wrong.jpg"
    shutil.move(images / "train" / "class 0" / "0.jpg", wrong)
    more = ["--nEpochs", "12", "--batchSize", "8", "--expDir", str(folder), "--flipTest"]
    main.main([*on_folder(images, *more), "--augment", "flip"])
    return folder


def weights(folder: Path) -> str:
    return str(folder / "folder" / "alexnetbn" / "best.pt")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        predict.main([str(argument) for argument in arguments])
    return stop.value.code  # type: ignore[return-value]


def width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_wrong_label_stands_first(trained: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out.csv", tmp_path / "out.png"
    images = trained / "images" / "train"
    assert run(weights(trained), images, "--mistakes", out, "--sheet", sheet) == 0
    rows = table_of(out)
    assert rows[0]["path"] == str(images / "class 1" / "wrong.jpg")
    assert (rows[0]["class"], rows[0]["predicted"]) == ("class 1", "class 0")
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(-math.log(float(row["p_class"])), abs=0.01)
        assert row["class"] != row["predicted"]
    assert width(sheet) > 100


def test_mistakes_are_found_in_tables_and_folders_alike(trained: Path, tmp_path: Path) -> None:
    root = trained / "images"
    rows = [["path", "label"]]
    rows += [[str(path), path.parent.name] for path in sorted(root.glob("train/*/*"))]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = []
    for source in (root / "train", tmp_path / "t.csv"):
        run(weights(trained), source, "--mistakes", tmp_path / "out.csv")
        found.append((tmp_path / "out.csv").read_text())
    assert found[0] == found[1]


def test_a_folder_with_parts_is_looked_at_in_its_test_part(trained: Path) -> None:
    classes = ["class 0", "class 1", "class 2"]
    whole = given.labelled(str(trained / "images"), classes, Limits())
    part = given.labelled(str(trained / "images" / "val"), classes, Limits())
    assert [whole.path(k) for k in range(len(whole))] == [part.path(k) for k in range(len(part))]
    shuffled = given.labelled(str(trained / "images" / "val"), classes[::-1], Limits())
    assert sorted(shuffled.labels.tolist()) == sorted(2 - part.labels)


def test_a_run_leaves_the_mistakes_of_its_best_epoch(trained: Path) -> None:
    run = Path(weights(trained)).parent
    best = torch.load(run / "best.pt", weights_only=True)["record"]
    rows = table_of(run / "mistakes.csv")
    count = len(list((trained / "images" / "val").glob("*/*")))
    assert len(rows) == round(count * (1 - best["test_top1"] / 100))
    assert {row["epoch"] for row in rows} <= {str(best["epoch"])}


def test_features_are_what_the_last_layer_gets(trained: Path, tmp_path: Path) -> None:
    images = trained / "images" / "val"
    assert run(weights(trained), images, "--embed", tmp_path / "e.npz") == 0
    kept = np.load(tmp_path / "e.npz")
    network = model.load(weights(trained))
    last = network.body.classifier[-1]
    logits = torch.from_numpy(kept["features"]) @ last.weight.T + last.bias
    found = predict.predict(network, next(given.sources([str(images)], Limits())), 1)
    for path, row, prediction in zip(kept["paths"], logits, found, strict=True):
        assert path == prediction.path
        torch.testing.assert_close(row.softmax(0), prediction.scores, atol=1e-5, rtol=1e-4)


def test_the_most_similar_image_is_itself(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = trained / "images" / "val"
    wanted = sorted(images.glob("class 2/*"))[1]
    more = ("--similar", wanted, "-k", "3", "--sheet", tmp_path / "s.png")
    assert run(weights(trained), images, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1.0000 {wanted}"
    assert len(lines) == 3
    assert all("class 2" in line for line in lines)


def test_mirror_images_count_in_predictions(trained: Path) -> None:
    network = model.load(weights(trained))
    images = next(given.sources([str(trained / "images" / "val")], Limits()))
    plain = [p.scores for p in predict.predict(network, images, 1)]
    both = [p.scores for p in predict.predict(network, images, 1, mirrored=True)]
    pixels = predict.pixels_of(network.spec, list(predict.predict(network, images, 1)), None)
    with torch.no_grad():
        flipped = network(pixels.flip(3)).softmax(1)
    for own, mean, other in zip(plain, both, flipped, strict=True):
        torch.testing.assert_close(mean, (own + other) / 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mistakes", "a.csv", "--sheet", "a.csv"), "both name"),
        (("--mistakes", "a.csv", "--similar", "x.jpg"), "give one of them"),
        (("-k", "0"), "argument -k"),
        (("--similar", "missing.jpg"), "missing.jpg"),
    ],
)
def test_wrong_calls_are_one_line(
    more: tuple[str, ...], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(weights(trained), trained / "images" / "val", *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_likeness_is_to_one_image(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder names none, were there one image alone in it."""
    image = min((trained / "images" / "val" / "class 1").iterdir())
    (tmp_path / "one").mkdir()
    shutil.copy(image, tmp_path / "one")
    assert run(weights(trained), image.parent, "--similar", tmp_path / "one") == 2
    assert capsys.readouterr().err.endswith("/one: name one image file\n")
    assert run(weights(trained), image.parent, "--similar", tmp_path / "one" / image.name) == 0


def test_nothing_that_is_read_is_written_over(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = tmp_path / "shards"
    prepare.main(["pack", "--data_dir", str(trained / "images"), "--out", str(folder)])
    shard = next(folder.glob("*train*.tar"))
    photo = tmp_path / "photo.png"
    with Image.open(trained / "images" / "val" / "class 0" / "0.jpg") as image:
        # As a sheet of ours would be.
        image.save(photo, pnginfo=signed())
    rows = tmp_path / "t.csv"
    rows.write_text(f"path,label\n{photo},class 0\n")
    calls = {
        shard: (folder, "--sheet", shard),
        photo: (rows, "--mistakes", tmp_path / "m.csv", "--sheet", photo),
        rows: (rows, "--mistakes", rows),
    }
    for target, call in calls.items():
        before = target.read_bytes()
        assert run(weights(trained), *call) == 2
        assert "is read: name another" in capsys.readouterr().err
        assert target.read_bytes() == before
    monkeypatch.setattr(sys, "stdin", typed(f"{photo}\n".encode()))
    before = photo.read_bytes()
    assert run(weights(trained), "-", "--sheet", photo) == 2
    assert photo.read_bytes() == before


def test_an_output_that_is_there_is_replaced_whatever_names_the_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    prepare.main(["pack", "--data_dir", str(trained / "images"), "--out", str(folder)])
    shard = str(next(folder.glob("*train*.tar")))
    out = tmp_path / "out.csv"
    for argument in (shard.replace("0.tar", "{0..0}.tar"), "-"):
        out.write_text("path,rank,class,probability\nof before")
        photo = next(trained.glob("images/val/*/*"))
        monkeypatch.setattr(sys, "stdin", typed(f"{photo}\n".encode()))
        assert run(weights(trained), argument, "--csv", out) == 0
        assert out.read_text().startswith("path,rank,class,probability")


@pytest.mark.parametrize("option", ["--csv", "--sheet", "--mistakes", "--embed", "--explain"])
def test_weights_of_another_run_are_not_written_over(
    option: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, link = tmp_path / "other.pt", tmp_path / "link.png"
    content = b"\0\x01" * 99
    other.write_bytes(content)
    link.symlink_to(other)
    for name in (other, link):
        assert run(weights(trained), trained / "images" / "val", option, name) == 2
        assert "name another to write" in capsys.readouterr().err
        assert other.read_bytes() == content


@pytest.mark.parametrize("name", ["photo.jpg", "other.pt", "link.pt"])
def test_a_comparison_and_an_export_write_over_nothing_else(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("photo.jpg", "other.pt"):
        (tmp_path / other).write_bytes(b"PK\x03\x04 of before")
    (tmp_path / "link.pt").symlink_to("other.pt")
    run_folder = Path(weights(trained)).parent
    for call in (
        [compare.main, str(run_folder), "--out", str(tmp_path / name)],
        [export.main, weights(trained), "--to", "pt2", str(tmp_path / name)],
    ):
        with pytest.raises(SystemExit) as stop:
            call[0](call[1:])
        assert stop.value.code == 2
        assert capsys.readouterr().err.endswith("name another to write\n")
        assert (tmp_path / name).read_bytes() == b"PK\x03\x04 of before"


def test_where_no_image_can_be_read_that_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "out.csv"
    assert run(weights(trained), tmp_path / "bad.jpg", "--csv", out) == 1
    assert f"no image could be read: {out} not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("{val}", "--similar", "{val}"), "name one image file"),
        (("{table}",), "is a table: predict.py reads one with --mistakes"),
    ],
)
def test_what_names_no_image_is_answered_with_the_way(
    call: tuple[str, ...],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "t.csv").write_text("path,label\nx.jpg,class 0\n")
    places = {"val": trained / "images" / "val", "table": tmp_path / "t.csv"}
    assert run(weights(trained), *(word.format(**places) for word in call)) == 2
    assert message in capsys.readouterr().err


def test_a_class_that_the_weights_do_not_know_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d" / "cow").mkdir(parents=True)
    Image.new("RGB", (30, 30)).save(tmp_path / "d" / "cow" / "1.png")
    assert run(weights(trained), tmp_path / "d", "--mistakes", tmp_path / "o.csv") == 2
    assert "cow" in capsys.readouterr().err


def test_explanations_are_drawn(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.png"
    assert run(weights(trained), trained / "images" / "val" / "class 1", "--explain", out) == 0
    assert width(out) > 100


class Tiny(nn.Module):
    """A convolution of which Grad-CAM can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1)
        self.head = nn.Linear(2 * 4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).flatten(1))


def test_heatmaps_are_the_papers() -> None:
    torch.manual_seed(0)
    network, images = Tiny(), torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0])
    maps = network.features(images / 255)
    # The score is linear in the map: its gradient is the weights, of which each channel's mean.
    weights = network.head.weight[labels].view(3, 2, 2, 2).mean((2, 3), keepdim=True)
    expected = (weights * maps).sum(1).relu()
    largest = expected.amax((1, 2), keepdim=True)
    expected = expected / torch.where(largest > 0, largest, 1)
    torch.testing.assert_close(heatmaps(network, images, labels), expected.detach())


@pytest.mark.parametrize("name", ["googlenet", "squeezenet", "alexnet", "resnet18", "vit_b_16"])
def test_every_kind_of_network_says_where_it_looked(name: str) -> None:
    network = model.create(name, 3, 224)
    nn.init.normal_(model.weight_layers(network)[-1].weight)
    network.train()
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    maps = heatmaps(network, images)
    assert maps.shape == (2, 224, 224)
    assert 0 <= maps.min() <= maps.max() <= 1
    assert network.training
    with torch.no_grad():
        last = model.weight_layers(network)[-1]
        found, logits = features(network.eval(), last, images)
    assert len(found) == len(logits) == 2
    # A convolution at the end, as SqueezeNet has it, sees all positions: of its own inputs' means.
    wide = last.in_channels if isinstance(last, nn.Conv2d) else last.in_features
    assert found.shape == (2, wide)
    # Nothing of it stays behind.
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_grad_cam_is_that_of_its_library() -> None:
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = model.create("googlenet", 5, 224).eval()
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    own = heatmaps(network, images, torch.tensor([1, 3]))
    # The library subtracts each map's least value as well.
    own = own - own.amin((1, 2), keepdim=True)
    own = own / own.amax((1, 2), keepdim=True).clamp(min=1e-7)
    with library.GradCAM(network, [network.body.inception5b]) as cam:
        theirs = cam(images.float() / 255, [ClassifierOutputTarget(1), ClassifierOutputTarget(3)])
    torch.testing.assert_close(own, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_a_sweep_is_ranked(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in ("0", "0.01", "0.02"):
        more = ["--nEpochs", "1", "--LR", rate, "--expID", f"lr-{rate}", "--logger", "none"]
        main.main([*on_folder(images, *more), "--expDir", str(tmp_path)])
    (tmp_path / "folder" / "begun").mkdir()
    (tmp_path / "folder" / "begun" / "options.json").write_text("{}")
    capsys.readouterr()
    compare.main(["--sweep", str(tmp_path), "--by", "seconds", "--out", str(tmp_path / "c.png")])
    out, err = capsys.readouterr()
    heading, _, *rows = out.splitlines()
    assert {row.split()[0] for row in rows[:3]} == {"lr-0", "lr-0.01", "lr-0.02"}
    column = heading.split().index("LR")
    assert {row.split()[column] for row in rows[:3]} == {"0.0", "0.01", "0.02"}
    place = heading.replace("best top-1", "best").replace("last top-1", "last").split()
    best = [float(row.split()[place.index("best")]) for row in rows[:3]]
    assert best == sorted(best, reverse=True)
    assert "left out" in err
    assert "begun" in err
    assert compare.short_names(["a/mnist/x", "a/cifar/x"]) == ["mnist", "cifar"]
    assert compare.short_names(["a/b", "a/b"]) == ["b", "b"]


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_a_network_is_looked_into_as_it_is_tested(name: str) -> None:
    """Dropout and batch statistics would show another place each time."""
    network = model.create(name, 4, 64)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    tested = heatmaps(network.eval(), images)
    assert torch.equal(heatmaps(network.train(), images), tested)
    assert network.training
