"""Other programs run our networks without our code, and know what they see."""

import json
import logging
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from common import ROOT
from PIL import Image
from rig import make_images, on_folder

import export
import main
import model
import predict
from base import archive
from base.errors import Failed
from datasets import given
from datasets.images import Limits
from loading import seen as looked
from models import temperature
from models.int8 import quantise
from training.metrics import calibration


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    images = make_images(folder / "images", 24)
    main.main(
        [
            *on_folder(images, "--batchSize", "8", "--nEpochs", "2"),
            # The same network on every CPU: how much a grey level changes is its matter.
            *("--netType", "googlenet", "--precision", "fp32"),
            "--expDir",
            str(folder),
        ]
    )
    return folder / "folder" / "googlenet" / "best.pt"


def expected(weights: Path, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.load(str(weights))(torch.from_numpy(images)).softmax(1).numpy()


@pytest.fixture
def seen() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 20, 20), np.uint8)


def test_onnx_runs_where_our_code_is_not(weights: Path, seen: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export.main([str(weights), "--to", "onnx", str(tmp_path / "x.onnx")])
    np.save(tmp_path / "seen.npy", seen)
    code = (
        "import json, numpy, onnxruntime\ns = onnxruntime.InferenceSession('x.onnx', "
        "providers=['CPUExecutionProvider'])\n"
        "numpy.save('got.npy', s.run(None, {'images': numpy.load('seen.npy')})[0])\n"
        "print(json.dumps(s.get_modelmeta().custom_metadata_map))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    about = json.loads(result.stdout)
    assert json.loads(about["classes"]) == ["class 0", "class 1", "class 2"]
    assert (about["netType"], about["cropSize"], about["imageSize"]) == ("googlenet", "20", "24")
    assert json.loads(about["record"])["epoch"] in (1, 2)
    np.testing.assert_allclose(np.load(tmp_path / "got.npy"), expected(weights, seen), atol=1e-4)


def test_pt2_takes_any_number_of_images(
    weights: Path, seen: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main([str(weights), "--to", "pt2", str(tmp_path / "x.pt2")])
    megabytes = (tmp_path / "x.pt2").stat().st_size / 1e6
    assert f"x.pt2: pt2, {megabytes:.1f} MB, probabilities differ by" in capsys.readouterr().out
    extra = {"metadata.json": ""}
    program = torch.export.load(str(tmp_path / "x.pt2"), extra_files=extra).module()
    for count in (1, 5):
        got = program(torch.from_numpy(seen[:count])).detach().numpy()
        np.testing.assert_allclose(got, expected(weights, seen[:count]), atol=1e-4)
    assert json.loads(extra["metadata.json"])["netType"] == "googlenet"


def test_safetensors_holds_the_weights(weights: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    export.main([str(weights), "--to", "safetensors", str(tmp_path / "x.safetensors")])
    own = model.load(str(weights)).state_dict()
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["class 0", "class 1", "class 2"]
        assert {*file.keys()} == own.keys()
        assert all(torch.equal(file.get_tensor(name), own[name]) for name in own)


def test_an_export_is_made_again_and_a_new_file_may_have_any_name(
    weights: Path, tmp_path: Path
) -> None:
    for name in ("x.safetensors", "x.safetensors", "x"):
        export.main([str(weights), "--to", "safetensors", str(tmp_path / name)])
    sizes = [(tmp_path / name).stat().st_size for name in ("x", "x.safetensors")]
    assert sizes[0] == sizes[1] > 0


def test_nothing_is_left_where_an_export_fails(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, out in (
        (tmp_path / "missing.pt", tmp_path / "x.pt2"),
        (weights, tmp_path / "no" / "x.pt2"),
    ):
        with pytest.raises(SystemExit) as stop:
            export.main([str(source), "--to", "pt2", str(out)])
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    network = model.load(str(weights))
    with pytest.raises(Failed, match="differ by"):
        export.check(
            export.Probabilities(network),
            lambda images: torch.zeros(len(images), 3),
            tmp_path / "x",
        )
    assert not list(tmp_path.iterdir())


def test_a_sheet_shows_what_was_named(weights: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / "a $.png")
    with pytest.raises(SystemExit) as stop:
        predict.main(
            [str(weights), str(tmp_path / "a $.png"), "--sheet", str(tmp_path / "sheet.png")]
        )
    assert stop.value.code == 0
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size[0] >= 200


SIZES = [(427, 640), (301, 223), (97, 411), (64, 63), (20, 24), (600, 31)]


@pytest.mark.parametrize(
    ("turned", "fit"), [(False, "crop"), (True, "crop"), (False, "pad"), (True, "squash")]
)
def test_the_documented_script_prints_what_predict_prints(
    turned: bool, fit: str, weights: Path, tmp_path: Path, photographs: list[np.ndarray], capsys
) -> None:
    """On photographs of odd sizes, without this suite and without torch."""
    code = (ROOT / "docs" / "export.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 20
    value = archive.read(weights)
    value["model"] |= {"exif": "apply" if turned else "ignore", "fit": fit}
    torch.save(value, tmp_path / "best.pt")
    for number, (height, width) in enumerate(SIZES):
        exif = Image.Exif()
        exif[0x0112] = 1 + number
        image = Image.fromarray(photographs[number % 2]).resize((width, height))
        image.save(tmp_path / f"{number}.jpg", quality=95, exif=exif)

    export.main([str(tmp_path / "best.pt"), "--to", "onnx", str(tmp_path / "x.onnx")])
    names = [f"{number}.jpg" for number in range(len(SIZES))]
    blocked = "import sys; sys.modules['torch'] = None\n"
    result = subprocess.run(
        [sys.executable, "-I", "-c", blocked + code, "x.onnx", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    capsys.readouterr()
    paths = [str(tmp_path / name) for name in names]
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "best.pt"), *paths])
    ours = capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines()
    for line, other in zip(ours, result.stdout.splitlines(), strict=True):
        assert named(line) == pytest.approx(named(other), abs=0.5)
        assert line.split()[:2] == other.split()[:2]


def named(line: str) -> dict[str, float]:
    """Return the percent that a line gives each class."""
    words = [part.rsplit(" ", 1) for part in line.split(": ", 1)[1].split(", ")]
    return {name: float(percent.rstrip("%")) for name, percent in words}


def test_a_temperature_is_the_one_with_the_lowest_loss() -> None:
    draws = torch.Generator().manual_seed(1)
    truth = torch.randn(4000, 4, generator=draws)
    labels = torch.multinomial(truth.softmax(1), 1, generator=draws)[:, 0]
    # A network that is three times too sure.
    found = temperature.fit(3 * truth, labels)
    assert found == pytest.approx(3, rel=0.1)
    losses = [
        torch.nn.functional.cross_entropy(3 * truth / t, labels).item()
        for t in (found, 0.99 * found, 1.01 * found)
    ]
    assert losses[0] <= min(losses[1:])
    before, _ = calibration((3 * truth).softmax(1), labels)
    after, _ = calibration(temperature.scaled(3 * truth, found), labels)
    assert after < before / 3


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_calibrated_graph_divides_by_its_temperature(
    kind: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = model.load(str(weights))
    noise = np.random.default_rng(1)
    # What the network says is right for two of three images.
    photos = [noise.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(24)]
    side, classes = network.spec.crop_size, network.spec.classes
    assert side == 20
    with torch.no_grad():
        shown = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
        said = network(shown).argmax(1).tolist()
    for number, (pixels, label) in enumerate(zip(photos, said, strict=True)):
        name = classes[(label + (number % 3 == 0)) % len(classes)]
        path = tmp_path / "d" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The centre of 24 x 24 pixels is what is seen.
        Image.fromarray(np.pad(pixels, ((2, 2), (2, 2), (0, 0)))).save(path)
    out = tmp_path / f"x.{kind}"
    export.main([str(weights), "--to", kind, str(out), "--calibrate", str(tmp_path / "d")])
    told = capsys.readouterr().out
    assert "of 24 images: calibration error" in told
    divisor = float(told.split()[1])
    images = torch.from_numpy(noise.integers(0, 256, (2, 3, side, side), np.uint8))
    with torch.no_grad():
        expected = (network(images).float() / divisor).softmax(1)
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert float(session.get_modelmeta().custom_metadata_map["temperature"]) == pytest.approx(
            divisor, abs=1e-3
        )
    else:
        found = torch.export.load(str(out)).module()(images)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)


def test_a_loss_of_scores_far_apart_is_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A probability below 1e-45 is 0 in float32."""
    scores = torch.tensor([[300.0, 0.0]]).repeat(16, 1)
    labels = torch.tensor([0] * 12 + [1] * 4)
    spec = types.SimpleNamespace(classes=("a", "b"))
    network: Any = type("Network", (), {"spec": spec, "__call__": lambda _, pixels: pixels})()
    monkeypatch.setattr(export.given, "labelled", lambda *_: None)
    monkeypatch.setattr(export.given, "refuse_among", lambda *_: None)
    monkeypatch.setattr(export, "_labelled", lambda *_: [(scores, labels)])
    export._temperature(network, "photos", tmp_path / "x.onnx")
    told = capsys.readouterr().out
    assert f"loss {300 * 4 / 16:.4f} ->" in told
    assert "inf" not in told


def test_images_that_decide_no_temperature_are_refused() -> None:
    logits = torch.tensor([[3.0, 1.0], [0.5, 2.0]])
    assert temperature.fit(logits, torch.tensor([0, 1])) is None
    assert temperature.fit(logits, torch.tensor([1, 0])) is None
    assert temperature.fit(logits, torch.tensor([0, 0])) is not None


@pytest.mark.parametrize("named", ["table", "image"])
def test_what_is_calibrated_on_is_not_written_over(
    named: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, rows = tmp_path / "a.pt2", tmp_path / "t.csv"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(photo, format="PNG")
    rows.write_text("path,label\na.pt2,class 0\n")
    target = rows if named == "table" else photo
    before = target.read_bytes()
    with pytest.raises(SystemExit) as stop:
        export.main([str(weights), "--to", "pt2", str(target), "--calibrate", str(rows)])
    assert stop.value.code == 2
    assert "is read: name another" in capsys.readouterr().err
    assert target.read_bytes() == before


def test_weights_alone_have_no_temperature(weights: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        export.main([str(weights), "--to", "safetensors", "x", "--calibrate", "d"])
    assert "--calibrate belongs into a graph" in capsys.readouterr().err


def test_int8_says_what_it_costs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the images set the ranges; of the others both files' accuracy is what is said."""
    import onnx

    images = make_images(tmp_path / "images", 24) / "val"
    for name, more in (("whole.onnx", []), ("small.onnx", ["--int8", str(images)])):
        export.main([str(weights), "--to", "onnx", str(tmp_path / name), *more])
    told = capsys.readouterr().out
    for name in ("whole.onnx", "small.onnx"):
        megabytes = (tmp_path / name).stat().st_size / 1e6
        assert f"{tmp_path / name}: onnx, {megabytes:.1f} MB, probabilities differ" in told
    size = {name: (tmp_path / name).stat().st_size for name in ("whole.onnx", "small.onnx")}
    assert size["small.onnx"] < 0.4 * size["whole.onnx"]
    kinds = {value.data_type for value in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds

    network = model.load(str(weights))
    every = given.labelled(str(images), list(network.spec.classes), Limits())
    tried = every.chosen(np.arange(1, len(every), 2))
    shares = []
    for name in size:
        session = onnxruntime.InferenceSession(str(tmp_path / name))
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["classes"]) == list(network.spec.classes)
        right = 0
        for pixels, indices, _ in looked.batches(network.spec, tried):
            scores = session.run(None, {"images": pixels.numpy()})[0]
            right += int((scores.argmax(1) == tried.labels[indices.numpy()]).sum())
        shares.append(f"{100 * right / len(tried):.2f} %")
    assert f"top-1 of the {len(tried)} others {shares[0]} -> {shares[1]}" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", *sorted(size)]


def test_int8_is_of_onnx(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        export.main([str(weights), "--to", "pt2", str(tmp_path / "x"), "--int8", str(tmp_path)])
    assert error.value.code == 2
    assert "--int8 is of ONNX files: give --to onnx" in capsys.readouterr().err


def test_each_channel_has_its_own_8_bit_step_and_nothing_is_logged(
    weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    static = quantization.quantize_static

    def advising(*arguments: Any, **settings: Any) -> None:
        logging.warning("Please consider to do what was done")
        static(*arguments, **settings)

    def unable(*_: object) -> None:
        raise NotImplementedError("shapes of a network of any batch size")

    monkeypatch.setattr(quantization, "quantize_static", advising)
    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", unable)
    export.main([str(weights), "--to", "onnx", str(tmp_path / "x.onnx")])
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 20, 20), np.uint8)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        quantise(tmp_path / "x.onnx", tmp_path / "y.onnx", [images[:2], images[2:]])
    assert not [record for record in caplog.records if record.name == "root"]
    # Whatever else this process has to say is heard again.
    assert logging.root.manager.disable == logging.NOTSET
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.onnx", "y.onnx"]

    graph = onnx.load(tmp_path / "y.onnx").graph
    stored = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    steps = {
        node.input[0]: stored[node.input[1]]
        for node in graph.node
        if len(node.input) > 1 and node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    kernels = [name for name in steps if stored[name].ndim == 4 and len(stored[name]) > 1]
    assert kernels
    for name in kernels:
        assert steps[name].shape == (len(stored[name]),), name


def test_what_cannot_be_quantised_is_said_not_what_it_did_not_leave(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(Exception, match="pars") as error:
        quantise(tmp_path / "x.onnx", tmp_path / "y.onnx", [])
    assert not isinstance(error.value, FileNotFoundError)
    assert logging.root.manager.disable == logging.NOTSET
