"""Weights that other people's programs write, and what is said of those that do not fit."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from common import refused_with
from PIL import Image
from torch import Tensor, nn

import model
from base.errors import Refused
from models import weights

Body = dict[str, Tensor]


@pytest.fixture
def network() -> model.Network:
    torch.manual_seed(3)
    return model.create("alexnetbn", ["cat", "dog", "emu"], 32)


def body_of(network: model.Network) -> Body:
    state = network.state_dict()
    return {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}


def prefixed(body: Body, prefix: str) -> Body:
    return {prefix + name: value for name, value in body.items()}


# What each program saves, from a network's state dict.
FORMS = {
    "bare": lambda body: body,
    "DataParallel": lambda body: prefixed(body, "module."),
    "torch.compile": lambda body: prefixed(body, "_orig_mod."),
    "both": lambda body: prefixed(body, "module._orig_mod."),
    "Lightning": lambda body: {"state_dict": prefixed(body, "model."), "epoch": 3},
    "torchvision": lambda body: {
        "model": body,
        "optimizer": {"state": {}},
        "args": argparse.Namespace(lr=0.1),
    },
    "torchvision's average": lambda body: {
        "model": {name: value * 0 for name, value in body.items()},
        "model_ema": {"n_averaged": torch.tensor(3), **prefixed(body, "module.")},
    },
    "timm": lambda body: {
        "state_dict": {name: value * 0 for name, value in body.items()},
        "state_dict_ema": body,
        "args": argparse.Namespace(lr=0.1),
    },
    "examples": lambda body: {"arch": "alexnet", "state_dict": prefixed(body, "module.")},
    "nested": lambda body: {"model": {"network": prefixed(body, "backbone.trunk.")}},
    "half": lambda body: {
        name: value.half() if value.is_floating_point() else value for name, value in body.items()
    },
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("form", FORMS)
def test_other_programs_files_are_read(
    form: str, old: bool, network: model.Network, tmp_path: Path
) -> None:
    body, path = body_of(network), str(tmp_path / "theirs.pth")
    torch.save(FORMS[form](body), path, _use_new_zipfile_serialization=not old)
    other = model.create("alexnetbn", 3, 32)
    assert model.load_weights(other, weights.read(path), path) == []
    precision = 1e-3 if form == "half" else 0
    for name, value in body_of(other).items():
        torch.testing.assert_close(value, body[name], rtol=precision, atol=precision)


def test_safetensors_are_read_and_our_own_export_is_whole(
    network: model.Network, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    import export

    body, path = body_of(network), str(tmp_path / "theirs.safetensors")
    save_file({name: value.contiguous() for name, value in body.items()}, path)
    other = model.create("alexnetbn", 3, 32)
    assert model.load_weights(other, weights.read(path), path) == []
    assert all(torch.equal(value, body[name]) for name, value in body_of(other).items())

    ours, out = tmp_path / "best.pt", tmp_path / "ours.safetensors"
    network.normalise.set([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    plain = {"model": network.spec.to_plain(), "network": network.state_dict(), "format": 1}
    torch.save(plain, ours)
    export.export(str(ours), "safetensors", out)
    again = model.load(str(out))
    assert again.spec == network.spec
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (nn.Sequential(nn.Linear(2, 2)), r"holds more than weights.*state_dict\(\)"),
        ({"epoch": 3}, "holds no weights"),
        ({"fc.weight": torch.zeros(3, 3)}, "does not fit alexnetbn.*is missing.*and [0-9]+ more"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_what_holds_no_weights_is_refused_in_one_line(
    value: object, said: str, old: bool, network: model.Network, tmp_path: Path
) -> None:
    path = str(tmp_path / "theirs.pth")
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    with refused_with(said):
        model.load_weights(network, weights.read(path), path)


@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_file_is_refused(old: bool, network: model.Network, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(body_of(network), path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    for content in (data[: len(data) // 2], data[:30], b"", b"\x80\x02" + bytes(300), b"x" * 99):
        path.write_bytes(content)
        with refused_with("theirs.pth is"):
            weights.read(str(path))


def test_pipes_and_devices_are_no_weights(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with refused_with("not a regular file"):
            weights.read(path)
        with refused_with("not a regular file"):
            model.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": "abc"},
        {"classes": ["a", 3]},
        {"netType": 7},
        {"netType": "none"},
        {"cropSize": -32},
        {"cropSize": True},
        {"imageSize": "32"},
        {"stem": "thick"},
        {"interpolation": "best"},
        {"exif": 1},
        {"titles": ["only one"]},
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(
    change: dict, network: model.Network, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    spec = network.spec.to_plain() | change
    torch.save({"model": spec, "network": network.state_dict()}, path)
    with pytest.raises(Refused):
        model.load(str(path))


def test_averaged_weights_of_a_checkpoint_are_what_is_used(
    network: model.Network, tmp_path: Path
) -> None:
    """They are what was tested; best.pt has them too."""
    averaged = {name: value.clone() for name, value in network.state_dict().items()}
    raw = {n: v + 1 if v.is_floating_point() else v for n, v in averaged.items()}
    path = tmp_path / "step-1.pt"
    plain = {"model": network.spec.to_plain(), "network": raw, "updater": {"averaged": averaged}}
    torch.save(plain, path)
    state = model.load(str(path)).state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in state.items())


def test_published_weights_lie_where_torch_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TORCH_HOME; vgg11's are in the form of before 1.6, whose bytes the hash vouches for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "squeezenet1_0-b66bff10.pth"
    monkeypatch.setattr(model, "digest_of", lambda path, kind: "b66bff10" + "0" * 56)
    theirs = model.create("squeezenet1_0", 1000, 224)
    torch.save(body_of(theirs), file, _use_new_zipfile_serialization=False)
    path = model.published_weights("squeezenet1_0")
    assert path == str(file)
    other = model.create("squeezenet1_0", 1000, 224)
    assert model.load_weights(other, weights.read(path), path) == []
    assert all(torch.equal(v, body_of(theirs)[n]) for n, v in body_of(other).items())


def changed(network: model.Network, name: str, value: Tensor) -> Body:
    return body_of(network) | {name: value}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: (w * 127).to(torch.int8), "is int8, not float32"),
        (lambda w: w > 0, "is bool, not float32"),
        (lambda w: w.to(torch.complex64), "is complex64, not float32"),
        (lambda w: w.to(torch.float8_e4m3fn), "is float8_e4m3fn, not float32"),
        (lambda w: w.double() * 1e300, "not finite"),
        (lambda w: torch.full_like(w, float("nan")), "not finite"),
        (lambda w: w.to_sparse(), "no plain tensor"),
        (lambda w: torch.zeros(1).expand(10**12), "larger than what is stored"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "no plain tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused_by_name(
    change,
    said: str,
    network: model.Network,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    name = next(name for name in body_of(network) if name.endswith("weight"))
    path = str(tmp_path / "theirs.pth")
    torch.save(changed(network, name, change(body_of(network)[name])), path)
    with refused_with(f"{name}.*{said}|{said}.*{name}"):
        model.load_weights(network, weights.read(path), path)


@pytest.mark.parametrize("value", [{0: torch.zeros(2)}, {("a", 1): torch.zeros(2)}])
def test_names_that_are_no_text_are_no_weights(
    value: dict, network: model.Network, tmp_path: Path
) -> None:
    path = str(tmp_path / "theirs.pth")
    torch.save(value, path)
    with refused_with("holds no weights"):
        model.load_weights(network, weights.read(path), path)


def test_weights_beside_other_dicts_are_found(network: model.Network, tmp_path: Path) -> None:
    path = str(tmp_path / "theirs.pth")
    body = body_of(network)
    for value in (
        {"state_dict": body, "ema": {"decay": 0.99}},
        {"state_dict_ema": {}, "state_dict": body},
    ):
        torch.save(value, path)
        assert model.load_weights(network, weights.read(path), path) == []


@pytest.mark.parametrize("first", ["", "module."])
def test_weights_that_are_there_twice_are_refused(
    first: str, network: model.Network, tmp_path: Path
) -> None:
    body, path = body_of(network), str(tmp_path / "theirs.pth")
    second = "" if first else "module."
    torch.save(prefixed(body, first) | prefixed(body, second), path)
    with refused_with("is there twice|is unknown"):
        model.load_weights(network, weights.read(path), path)


def test_a_deviation_of_nothing_is_refused(network: model.Network, tmp_path: Path) -> None:
    network.normalise.std[1] = 0
    path = tmp_path / "best.pt"
    torch.save({"model": network.spec.to_plain(), "network": network.state_dict()}, path)
    with refused_with("normalise.std is not above 0"):
        model.load(str(path))


def test_published_weights_are_tested_as_torchvision_tests_them(
    tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    """Made-up weights, in a file called as torchvision's, and 30 images of 1,000 classes."""
    import published

    twin = next(twin for twin in published.twins() if twin.name == "googlenet")
    weights = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    assert (twin.file, twin.top1) == ("googlenet-1378be20.pth", 69.778)
    assert (twin.image_size, twin.crop_size) == (256, 224)
    torch.manual_seed(5)
    network = torchvision.models.googlenet(transform_input=True, init_weights=False).eval()
    torch.save(network.state_dict(), tmp_path / twin.file)

    draws, right = np.random.default_rng(1), 0
    for number in range(1000):
        for side in ("train", "val"):
            (tmp_path / "d" / side / f"n{number:08d}").mkdir(parents=True)
        small = Image.fromarray(photographs[0][:8, :8])
        small.save(tmp_path / "d" / "train" / f"n{number:08d}" / "x.png")
    for number in range(30):
        top, left = draws.integers(0, 120), draws.integers(0, 300)
        image = Image.fromarray(photographs[number % 2][top : top + 300, left : left + 320])
        pixels = weights.transforms()(image)
        with torch.inference_mode():
            said = int(network(pixels[None]).argmax(1))
        # Two of three are right.
        label = said if number % 3 else (said + 1) % 1000
        right += label == said
        image.save(tmp_path / "d" / "val" / f"n{label:08d}" / f"{number}.png")
    top1 = 100 * right / 30
    more = "--dataset", "folder", "--GPU", "-1", "--precision", "fp32", "--nThreads", "0"
    result = published.run(tmp_path / "d", tmp_path, *more, expected={"googlenet": top1})
    assert result["tested"]["googlenet"]["measured"] == pytest.approx(top1)
    assert result["equal"] == len(result["tested"]) == 1


def test_published_weights_are_normalised_as_published() -> None:
    preset = torchvision.transforms._presets.ImageClassification(crop_size=224)
    assert list(weights.IMAGENET_MEAN) == preset.mean
    assert list(weights.IMAGENET_STD) == preset.std


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Weights only load failed: set `weights_only=False`"), None),
        (EOFError(), "EOFError"),
        (ValueError("bad magic\nand more"), "bad magic"),
    ],
)
def test_why_a_file_is_no_weights_is_said_without_torch_s_advice(
    error: Exception, reason: str | None
) -> None:
    said = str(weights._damaged("w.pt", error))
    # Its advice is to run whatever is in the file.
    reason = reason or "it cannot be read as plain data"
    assert said == f"w.pt is damaged or no file of weights: {reason}"
