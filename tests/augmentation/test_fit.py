"""--fit: what of a photograph is seen. Compared with torchvision's Resize and Pad."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rig import on_folder
from torchvision.transforms import v2

import augmentation
import main
import model
import opts
import predict
from datasets import decode, given
from datasets.images import Limits
from transforms import Pipeline

SIDE = 96
SHAPES = [(427, 640), (640, 427), (427, 427), (97, 640), (500, 20)]


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def expected(pixels: np.ndarray, fit: str) -> torch.Tensor:
    """Return what torchvision makes of an image: all of it, in a square."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if fit == "squash":
        return v2.functional.resize(image, [SIDE, SIDE], antialias=True)
    height, width = pixels.shape[:2]
    longer = max(height, width)
    tall, wide = max(1, SIDE * height // longer), max(1, SIDE * width // longer)
    resized = v2.functional.resize(image, [tall, wide], antialias=True)
    left, top = (SIDE - wide) // 2, (SIDE - tall) // 2
    return v2.functional.pad(resized, [left, top, SIDE - wide - left, SIDE - tall - top])


def seen(pixels: np.ndarray, pipeline: Pipeline, index: int = 0) -> torch.Tensor:
    """Return what a file's image becomes."""
    height, width = pixels.shape[:2]
    window = pipeline.windows(np.array([width]), np.array([height]), 0, np.array([index]))
    return decode.read_windows(encoded(pixels), window.box[0], window)


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_of_an_image_is_seen_as_torchvision_shows_it(
    fit: str, shape: tuple[int, int], photographs: list[np.ndarray]
) -> None:
    photo = Image.fromarray(photographs[0]).resize((shape[1], shape[0]))
    pixels = np.array(photo)
    pipeline = Pipeline([], SIDE, SIDE, fit=fit)
    difference = (seen(pixels, pipeline).int() - expected(pixels, fit).int()).abs()
    assert difference.max() <= 1

    # An array of one size is the same.
    array = torch.from_numpy(pixels).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
    cut = pipeline.cut_arrays(array, 0, np.arange(3))
    assert (cut.int() - expected(pixels, fit).int()).abs().max() <= 1

    # So is one that is kept decoded.
    kept = decode.scaled(encoded(pixels), pipeline.scaling(), 10**7)
    difference = (seen(kept, pipeline).int() - expected(pixels, fit).int()).abs()
    assert difference.max() <= 1


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_random_crops_reach_every_border_of_the_square(
    fit: str, photographs: list[np.ndarray]
) -> None:
    pipeline = Pipeline(augmentation.parse("crop"), SIDE + 8, SIDE, seed=1, fit=fit)
    whole = Pipeline([], SIDE + 8, SIDE + 8, fit=fit)
    square = seen(photographs[0], whole)
    places = set()
    for index in range(400):
        part = seen(photographs[0], pipeline, index)
        height, width = photographs[0].shape[:2]
        _, offset = pipeline._placement(
            np.array([[width, height]], np.float64), 0, np.array([index])
        )
        border = (SIDE + 8 - (SIDE + 8) * height // width) // 2 if fit == "pad" else 0
        left, top = int(offset[0, 0]), int(offset[0, 1]) + border
        places.add((left, top))
        difference = (square[:, top : top + SIDE, left : left + SIDE].int() - part.int()).abs()
        assert difference.max() <= 1
    assert {left for left, _ in places} == {top for _, top in places} == set(range(9))

    stored = torch.from_numpy(np.array(photographs[0])).permute(2, 0, 1)
    array = stored[None].repeat(40, 1, 1, 1)
    cut = pipeline.cut_arrays(array, 0, np.arange(40))
    for index in range(40):
        part = seen(photographs[0], pipeline, index)
        assert (cut[index].int() - part.int()).abs().max() <= 1


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("more", [[], ["--decoded", "ram"]])
def test_a_run_keeps_its_fit_in_its_weights(
    fit: str, more: list[str], images: Path, tmp_path: Path
) -> None:
    words = on_folder(images, "--nEpochs", "1", "--fit", fit, "--expDir", str(tmp_path), *more)
    main.main([*words, "--logger", "none", "--precision", "fp32"])
    best = str(tmp_path / "folder" / "alexnetbn" / "best.pt")
    network = model.load(best)
    assert network.spec.fit == fit
    found = next(given.sources([str(images / "val")], Limits()))
    predictions = list(predict.predict(network, found, 1))
    size, crop = network.spec.image_size, network.spec.crop_size
    pixels = predict.pixels_of(network.spec, predictions, None)
    pipeline = Pipeline([], size, crop, fit=fit)
    with Image.open(found.path(0)) as image:
        expected = seen(np.asarray(image.convert("RGB")), pipeline)
    assert (pixels[0].int() - expected.int()).abs().max() <= 1
    # A test takes it from the weights.
    test = ["--test", "--retrain", best, "--dataset", "folder", "--data_dir", str(images)]
    main.main([*test, "--expDir", str(tmp_path), "--GPU", "-1", "--nThreads", "0"])
    assert opts.parse([*test, "--fit", "crop"]).fit == "crop"


def test_all_of_an_image_is_seen_at_the_crops_size_unless_more_is_given() -> None:
    assert opts.parse(["--dataset", "folder", "--fit", "pad"]).imageSize == 224
    assert opts.parse(["--dataset", "folder", "--fit", "pad", "--cropSize", "64"]).imageSize == 64
    assert opts.parse(["--dataset", "folder", "--fit", "pad", "--imageSize", "256"]).cropSize == 224
    assert opts.parse(["--dataset", "folder"]).imageSize == 256


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--tenCrop"], "leave one of them out"), (["--augment", "scale:256:300"], "leave scale out")],
)
def test_what_shows_parts_does_not_go_with_all(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        opts.parse(["--dataset", "folder", "--fit", "squash", *more])
    assert message in capsys.readouterr().err
