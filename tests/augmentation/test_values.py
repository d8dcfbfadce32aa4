"""Values of augmentations: defaults, ranges and borders are those that the papers and the help say,
and floats are treated as bytes are.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import augmentation
from augmentation import AUGMENTATIONS, colour, geometry, mix, noise
from augmentation.resize import cut
from base.randomness import uniforms
from transforms import Pipeline, sized_boxes

# Typed by hand: name, default, least, most of each value.
PIXELS, DEGREES = ("pixels", 4, 0, 256), ("degrees", 15, 0, 180)
VALUES = {
    "scale": [("least", 256, 1, 4096), ("most", 480, 1, 4096)],
    "pad": [PIXELS],
    "resizedcrop": [
        ("smallest area", 0.08, 0.01, 1),
        ("largest area", 1, 0.01, 1),
        ("aspect", 4 / 3, 1, 4),
    ],
    "shift": [PIXELS],
    "rotate": [DEGREES],
    "warp": [DEGREES, ("scale", 0.2, 0, 0.9)],
    "randaugment": [("operations", 2, 1, 4), ("magnitude", 9, 0, 30)],
    "jitter": [("strength", 0.4, 0, 1)],
    "brightness": [("strength", 0.4, 0, 1)],
    "contrast": [("strength", 0.4, 0, 1)],
    "saturation": [("strength", 0.4, 0, 1)],
    "hsv": [("hue", 0.05, 0, 0.5), ("saturation", 0.3, 0, 1), ("value", 0.3, 0, 1)],
    "grey": [("probability", 0.1, 0, 1)],
    "lighting": [("deviation", 0.1, 0, 1)],
    "mul": [("factor", 1, 0, 16)],
    "erase": [
        ("probability", 0.25, 0, 1),
        ("smallest area", 0.02, 0.001, 1),
        ("largest area", 0.33, 0.001, 1),
    ],
}


@pytest.mark.parametrize("name", VALUES)
def test_defaults_and_ranges_are_those_of_the_papers(name: str) -> None:
    found = [(v.name, v.default, v.low, v.high) for v in AUGMENTATIONS[name].values]
    assert found == VALUES[name]
    assert augmentation.parse(name)[0].values == tuple(row[1] for row in VALUES[name])


@pytest.mark.parametrize("name", [name for name, v in AUGMENTATIONS.items() if v.values])
def test_both_ends_of_a_range_are_allowed_and_no_more(name: str) -> None:
    value = AUGMENTATIONS[name].values[0]
    # The second value of a pair must not be below the first.
    rest = "".join(f":{other.high:g}" for other in AUGMENTATIONS[name].values[1:])
    for number in (value.low, value.high):
        assert augmentation.parse(f"{name}:{number:g}{rest}")[0].values[0] == number
    for number in (value.low - 0.01, value.high + 0.01):
        with pytest.raises(ValueError, match=f"must be a number from {value.low:g} to"):
            augmentation.parse(f"{name}:{number}{rest}")


@pytest.fixture
def pixels() -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (32, 3, 12, 16), np.uint8))


@pytest.mark.parametrize("name", [n for n, v in AUGMENTATIONS.items() if ":" in v.function])
def test_floats_are_treated_as_bytes(name: str, pixels: Tensor) -> None:
    entry = AUGMENTATIONS[name]
    module, function = entry.function.split(":")
    step = getattr(__import__(f"augmentation.{module}", fromlist=[function]), function)
    u = uniforms(3, 0, np.arange(32), entry.draws, name)
    values = [value.default for value in entry.values]
    if entry.stage == augmentation.MIX:
        labels = torch.arange(32) % 4
        whole, targets = step(pixels, labels, 4, u[0], *values)
        parts, others = step(pixels.float() / 255, labels, 4, u[0], *values)
        assert torch.equal(targets, others)
    else:
        whole, parts = (step(images, u, *values) for images in (pixels, pixels.float() / 255))
    assert whole.dtype == torch.uint8
    assert parts.dtype == torch.float32
    apart = (parts * 255 - whole.float()).abs()
    # RandAugment's operations on whole levels (posterize, solarize, equalize) may step by one more.
    assert (apart > 1.5).float().mean() < (0.1 if name in ("randaugment", "trivial") else 1e-6)


def test_warp_turns_and_enlarges_by_what_is_drawn(pixels: Tensor) -> None:
    u = torch.tensor([[0.0, 0.0], [0.25, 1.0], [1.0, 0.5]])
    angles = torch.tensor([math.radians(degrees) for degrees in (-20, -10, 20)])
    factors = torch.tensor([0.7, 1.3, 1.0])
    expected = geometry.affine(pixels[:3], angle=angles, scale=factors)
    assert (geometry.warp(pixels[:3], u, 20, 0.3).int() - expected.int()).abs().max() <= 1


def test_noise_is_normal_without_a_trace_of_the_place() -> None:
    grey = torch.zeros(400, 3, 16, 16)
    u = uniforms(1, 0, np.arange(400), AUGMENTATIONS["noise"].draws, "noise")
    # Far from 0 and 1, where values would be cut off.
    found = noise.noise(grey + 0.5, u, 0.05)
    values = (found - 0.5).double().numpy()
    deviations = values.reshape(400, -1).std(1)
    unit = values / deviations[:, None, None, None]
    assert stats.kstest(unit[:40].ravel(), "norm").statistic < 0.01
    for shift in (1, 16, 256):
        flat = unit.reshape(400, -1)
        assert abs((flat[:, shift:] * flat[:, :-shift]).mean()) < 0.01
    # Neighbouring images have noise of their own.
    assert abs((unit[1:] * unit[:-1]).mean()) < 0.01


def test_hidden_parts_of_floats_have_the_mean_colour(pixels: Tensor) -> None:
    boxes = torch.tensor([[0, 0, 16, 12]])
    bytes_, floats = noise.hide(pixels[:1], boxes), noise.hide(pixels[:1].float() / 255, boxes)
    assert torch.allclose(floats * 255, bytes_.float(), atol=1e-3)
    assert bytes_[0, :, 0, 0].tolist() == list(noise.FILL)


def test_sides_are_scaled_to_each_whole_length_as_often() -> None:
    way = Pipeline(augmentation.parse("scale:30:34,crop"), 24, 20)
    sides = np.full(4000, 24.0)
    boxes = way.windows(sides, sides, 0, np.arange(4000)).box
    lengths = np.rint(20 * 24 / (boxes[:, 2] - boxes[:, 0])).astype(int)
    found, counts = np.unique(lengths, return_counts=True)
    assert found.tolist() == [30, 31, 32, 33, 34]
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("side", [(500, 20), (20, 500), (3, 3), (1, 1), (640, 480)])
def test_sized_crops_lie_within_any_image(side: tuple[int, int]) -> None:
    sides = np.tile(np.array([side], np.float64), (2000, 1))
    u = uniforms(4, 0, np.arange(2000), 40, "resizedcrop").numpy().astype(np.float64)
    left, top, right, bottom = sized_boxes(sides, u, 0.08, 1, 4 / 3).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= side[0]).all()
    assert (bottom <= side[1]).all()
    assert (right - left >= 1).all()
    assert (bottom - top >= 1).all()


def test_a_beta_that_never_fits_is_a_share_all_the_same() -> None:
    for u in (torch.full((67,), 0.999), torch.zeros(67)):
        assert 0 <= mix.beta(u, 1.0) <= 1
    # The first pair that fits is taken: 0.2 and 0.6.
    u = torch.tensor([0.9, 0.9, 0.2, 0.6, 0.1, 0.1, 0.0, 0.0, 0.0])
    assert mix.beta(u, 1.0) == pytest.approx(0.25)
    assert mix.beta(torch.zeros(9), 1.0) == 0.5


def test_hues_come_around() -> None:
    one, red = torch.ones(2), torch.zeros(2, 3, 1, 1)
    red[:, 0] = 1.0
    # A third of the circle from red is green, and as far the other way is blue.
    turned = colour.shift_hsv(red, torch.tensor([1 / 3, -1 / 3]), one, one)[:, :, 0, 0]
    assert turned.round().tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_window_beyond_the_image_is_black(pixels: Tensor) -> None:
    far = np.array([40.0, 40.0, 60.0, 60.0])
    for box in (far, -far[[2, 3, 0, 1]], far * [1, 0, 1, 0] + [0, 2, 0, 10]):
        found = cut(pixels[:1], box, 8, True, "bilinear")
        assert found.shape == (1, 3, 8, 8)
        assert not found.any()


def test_a_pad_wider_than_the_crop_is_that_of_the_padded_image(pixels: Tensor) -> None:
    way = Pipeline(augmentation.parse("pad:30,crop"), 12, 8)
    every, sides = np.arange(32), (np.full(32, 16), np.full(32, 12))
    window = way.windows(*sides, 0, every)
    arrays = way.cut_arrays(pixels, 0, every)
    padded = torch.nn.functional.pad(pixels, [30] * 4)
    for index, box in enumerate(window.box):
        left, top = (int(edge) + 30 for edge in box[:2])
        expected = padded[index, :, top : top + 8, left : left + 8]
        assert torch.equal(arrays[index], expected)
        found = cut(pixels[index][None], box, 8, True, "bilinear")[0]
        assert torch.equal(found, expected)
