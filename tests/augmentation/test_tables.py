"""What the table of augmentations says of each is so, and each draw and value counts."""

import inspect
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torchvision.transforms import v2 as theirs

import augmentation
import transforms
from augmentation import AUGMENTATIONS, MIX, WINDOW, colour, mix, noise, policy, resize
from base.randomness import uniforms
from transforms import Pipeline, Window

PLAIN = [name for name, entry in AUGMENTATIONS.items() if entry.stage not in (WINDOW, MIX)]


@pytest.fixture
def images(photographs: list[np.ndarray]) -> torch.Tensor:
    """Parts of real photographs, (6, 3, 40, 56) uint8."""
    parts = [photographs[n % 2][60 * n : 60 * n + 40, 70 * n : 70 * n + 56] for n in range(6)]
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("name", [*PLAIN, "mixup", "cutmix"])
def test_defaults_of_the_table_are_those_of_the_functions(name: str) -> None:
    entry = AUGMENTATIONS[name]
    parameters = inspect.signature(transforms._find(entry.function)).parameters.values()
    defaults = [p.default for p in parameters if p.default is not inspect.Parameter.empty]
    assert defaults == [value.default for value in entry.values][: len(defaults)]


@pytest.mark.parametrize("name", [name for name in PLAIN if AUGMENTATIONS[name].draws])
def test_every_draw_counts(images: torch.Tensor, name: str) -> None:
    step = augmentation.parse("randaugment:4:20" if name == "randaugment" else name)[0]
    function = transforms._find(step.entry.function)
    many = images.repeat(40, 1, 1, 1)
    u = uniforms(1, 0, np.arange(len(many)), step.entry.draws, name)
    before = function(many, u, *step.values)
    for column in range(step.entry.draws):
        other = u.clone()
        other[:, column] = (u[:, column] + 0.37) % 1
        assert not torch.equal(function(many, other, *step.values), before), column


# Theirs -> the number of ours.
NUMBERS = {"Identity": 0, "ShearX": 1, "ShearY": 2, "TranslateX": 3, "TranslateY": 4, "Rotate": 5}
NUMBERS |= {"Brightness": 6, "Color": 7, "Contrast": 8, "Sharpness": 9, "Posterize": 10}
NUMBERS |= {"Solarize": 11, "AutoContrast": 12, "Equalize": 13}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
def test_amounts_of_the_policies_are_torchvision_s(name: str, wide: bool) -> None:
    policies = {False: theirs.RandAugment, True: theirs.TrivialAugmentWide}
    amounts, signed = policies[wide]._AUGMENTATION_SPACE[name]
    _, narrow, broad, ours_signed = policy.OPERATIONS[NUMBERS[name]]
    assert ours_signed == signed
    space = amounts(31, 331, 331)
    if space is None:
        assert (narrow, broad) == ((0, 0), (0, 0))
        return
    first, last = float(space[0]), float(space[-1])
    if name == "Solarize":
        first, last = 255 * first, 255 * last
    if name.startswith("Translate") and not wide:
        # Of an image's side.
        last /= 331
    assert (broad if wide else narrow) == pytest.approx((first, last))


@pytest.mark.parametrize("number", range(14))
def test_operations_of_the_policies_do_the_same_to_floats(
    images: torch.Tensor, number: int
) -> None:
    _, _, (_, most), _ = policy.OPERATIONS[number]
    amount = torch.full((6,), {10: 5.0, 11: 100.0}.get(number, 0.4 * most))
    function = policy.OPERATIONS[number][0]
    whole, real = function(images, amount), function(images / 255, amount)
    assert real.dtype == torch.float32
    off = (255 * real - whole.float()).abs()
    # Posterize and solarize jump where a value is at the edge of a step.
    assert (off > 1.01).float().mean() < 0.01


@pytest.mark.parametrize("turn", [0.2, 0.9])
def test_hsv_draws_as_the_formula_says(images: torch.Tensor, turn: float) -> None:
    u = torch.tensor([[turn, 0.1, 0.8]]).expand(6, 3)
    ours = colour.hsv(images, u, 0.1, 0.4, 0.3)
    one = torch.ones(6)
    expected = colour.shift_hsv(
        images, 0.1 * (2 * turn - 1) * one, (1 - 0.4 * 0.8) * one, (1 + 0.3 * 0.6) * one
    )
    assert (ours.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("saturation", [0.0, 0.4, 1.5])
def test_hsv_is_colorsys_on_every_pixel(images: torch.Tensor, saturation: float) -> None:
    import colorsys

    part = images[2:3, :, 4:16, 4:16]
    ours = colour.shift_hsv(
        part, torch.tensor([0.3]), torch.tensor([saturation]), torch.tensor([0.9])
    )
    for row in range(12):
        for column in range(12):
            pixel = (part[0, :, row, column] / 255).tolist()
            hue, had, value = colorsys.rgb_to_hsv(*pixel)
            expected = colorsys.hsv_to_rgb((hue + 0.3) % 1, min(1, had * saturation), 0.9 * value)
            assert ours[0, :, row, column].tolist() == pytest.approx(
                [255 * value for value in expected], abs=0.51
            )


def lowbias32(x: int) -> int:
    """Wellons' hash of 32 bits, as its author writes it."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_noise_is_a_hash_of_draw_and_place(kind: torch.dtype) -> None:
    unit = 255 if kind == torch.uint8 else 1
    grey = torch.full((2, 3, 4, 5), 128 if unit == 255 else 0.5, dtype=kind)
    u = torch.tensor([[0.123], [0.987]])
    ours = noise.noise(grey, u, 0.05)
    for image, draw in enumerate(u[:, 0].tolist()):
        for place in range(60):
            key = (int(draw * 2**24) * 0x9E3779B + place) & 0xFFFFFFFF
            first, second = ((lowbias32(k) >> 8) / 2**24 for k in (key, key ^ 0x5BD1E995))
            normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            expected = grey.flatten()[0].item() + unit * 0.05 * normal
            tolerance = 0.51 if unit == 255 else 1e-4
            assert ours[image].flatten()[place].item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("partner", [0.1, 0.5, 0.95])
def test_the_box_of_cutmix_and_the_partner_are_drawn_apart(partner: float) -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 40, 60)
    u = uniforms(3, 1, np.array([4]), AUGMENTATIONS["cutmix"].draws, "cutmix")[0]
    u[-3:] = torch.tensor([0.5, 0.4, partner])
    mixed, soft = mix.cutmix(images, torch.arange(6), 6, u, 1.0)
    side = math.sqrt(1 - mix.beta(u, 1.0))
    half_x, half_y = int(side * 60 / 2), int(side * 40 / 2)
    left, right = max(0, 30 - half_x), min(60, 30 + half_x)
    top, bottom = max(0, 16 - half_y), min(40, 16 + half_y)
    away = 1 + int(partner * 5)
    expected = torch.zeros(40, 60, dtype=torch.uint8)
    expected[top:bottom, left:right] = (0 - away) % 6
    assert torch.equal(mixed[0, 0], expected)
    share = (right - left) * (bottom - top) / 2400
    assert soft[0, (0 - away) % 6].item() == pytest.approx(share)


# Stored pixels a pixel of the result, from enlarging to shrinking.
@pytest.mark.parametrize("ratio", [0.2, 1 / 3, 0.5, 0.8, 1.0, 1.171875, 1.3, 2.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_boxes_are_cut_as_out_of_the_whole_resized_image(
    images: torch.Tensor, interpolation: str, ratio: float
) -> None:
    height, width = round(40 / ratio), round(56 / ratio)
    ratio_x, ratio_y = 56 / width, 40 / height
    side = min(24, height - 2)
    offsets = np.random.default_rng(1).integers(0, [width - side + 1, height - side + 1], (6, 2))
    scales = np.array([ratio_x, ratio_y])
    boxes = np.concatenate([offsets * scales, (offsets + side) * scales], 1)
    window = Window(boxes, side)
    sent = torch.from_numpy(boxes.astype(np.float32))
    size = [height, width]
    resized = torch.nn.functional.interpolate(images, size, mode=interpolation, antialias=True)
    for cut_all in (transforms.cut_boxes, transforms._cut_each):
        ours = cut_all(images, window, sent, interpolation)
        for mine, whole, (left, top) in zip(ours, resized, offsets.tolist(), strict=True):
            expected = whole[:, top : top + side, left : left + side]
            assert (mine.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_boxes_alone_are_resized_as_crops(images: torch.Tensor, interpolation: str) -> None:
    boxes = np.array([[3, 5, 23, 25], [0, 0, 56, 40], [20, 10, 28, 18], [7, 1, 52, 39]] * 2)[:6]
    window = Window(boxes.astype(np.float64), 24, whole=False)
    sent = torch.from_numpy(boxes.astype(np.float32))
    for cut_all in (transforms.cut_boxes, transforms._cut_each):
        ours = cut_all(images, window, sent, interpolation)
        for image, mine, (left, top, right, bottom) in zip(
            images, ours, boxes.tolist(), strict=True
        ):
            part = image[None, :, top:bottom, left:right]
            expected = torch.nn.functional.interpolate(
                part, [24, 24], mode=interpolation, antialias=True
            )[0]
            assert (mine.int() - expected.int()).abs().max() <= 1


def test_weights_beyond_the_border_are_nothing() -> None:
    low, high = torch.tensor([-30.0, 5.0]), torch.tensor([-10.0, 60.0])
    edges = torch.tensor([0.0, 0.0]), torch.tensor([50.0, 50.0])
    for interpolation in ("bilinear", "bicubic"):
        weights = resize._box_weights(low, high, 11, 50, True, interpolation, edges)
        assert weights.isfinite().all()
        assert not weights[0].any()
        inside = weights[1].sum(1)
        assert inside[:9].tolist() == pytest.approx([1] * 9, abs=1e-3)
        assert not inside[9:].any()


def test_ten_crops_of_files_are_at_the_corners() -> None:
    pipeline = Pipeline([], 40, 32, ten=True)
    windows = pipeline.windows(np.array([120, 80]), np.array([80, 160]), 0, np.arange(2))
    # Scaled to 60 x 40 and 40 x 80: two and two stored pixels a pixel.
    for box, (width, height) in zip(windows.box, ((60, 40), (40, 80)), strict=True):
        right, bottom = width - 32, height - 32
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
        corners.append((round(right / 2), round(bottom / 2)))
        expected = [[2 * x, 2 * y, 2 * (x + 32), 2 * (y + 32)] for x, y in corners]
        assert box.tolist() == expected


def test_smoothing_is_as_strong_as_the_draw_says(images: torch.Tensor) -> None:
    u = torch.tensor([[0.0], [0.25], [0.5], [0.75], [0.9], [0.999]])
    ours = noise.smooth(images.float() / 255, u, 3.0)
    for image, blurred, (share,) in zip(images, ours, u.tolist(), strict=True):
        theirs = scipy.ndimage.gaussian_filter(
            image[1].double().numpy() / 255, 3 * share, mode="nearest", radius=12
        )
        assert np.abs(blurred[1].numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize("side", [(40, 60), (60, 40)])
def test_erasing_hides_the_rectangle_that_its_draws_say(side: tuple[int, int]) -> None:
    height, width = side
    u = uniforms(2, 0, np.arange(300), 5, "erase")
    black = torch.zeros(300, 3, height, width, dtype=torch.uint8)
    fill = torch.tensor(noise.FILL, dtype=torch.uint8)[:, None, None]
    hidden = (noise.erase(black, u, 0.6, 0.05, 0.4) == fill).all(1)
    for image, (shown, area, aspect, top, left) in zip(hidden, u.tolist(), strict=True):
        expected = torch.zeros(height, width, dtype=torch.bool)
        if shown < 0.6:
            pixels = (0.05 + 0.35 * area) * height * width
            # From 0.3 to 1 / 0.3, evenly in its logarithm.
            tall_over_wide = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
            tall = min(height, max(1, round(math.sqrt(pixels * tall_over_wide))))
            wide = min(width, max(1, round(math.sqrt(pixels / tall_over_wide))))
            first_row = math.floor(top * (height - tall + 1))
            first_column = math.floor(left * (width - wide + 1))
            expected[first_row : first_row + tall, first_column : first_column + wide] = True
        assert torch.equal(image, expected)


@pytest.mark.parametrize(("name", "axis"), [("TranslateX", 3), ("TranslateY", 2)])
def test_translation_is_a_share_of_that_side(name: str, axis: int) -> None:
    """As torchvision's, which takes width and height; ours are of images that are not square."""
    images = torch.full((1, 3, 40, 80), 200, dtype=torch.uint8)
    # The middle of this operation's share of the draw.
    u = torch.tensor([[(NUMBERS[name] + 0.5) / 14, 0.9, 0.0, 0.9] + [0.0] * 4])
    u[0, 2] = 0.5 / 14
    moved = policy.randaugment(images, u, 2, 15)
    black = (moved == 0).all(1)[0].all(3 - axis).sum().item()
    assert black == int(images.shape[axis] * 150 / 331 / 2)


@pytest.mark.parametrize("name", ["brightness", "mul"])
def test_black_and_white_are_the_ends(name: str) -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 8, 1)[None]
    function = {
        "brightness": lambda: colour.brightness(images, torch.tensor([[0.0]]), 1.0),
        "mul": lambda: colour.mul(images, torch.empty(1, 0), 0.0),
    }[name]
    assert not function().any()
    doubled = colour.mul(images, torch.empty(1, 0), 2.0)
    assert torch.equal(doubled, images)
