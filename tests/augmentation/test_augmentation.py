"""Each augmentation is what somebody else's code, or a formula, says it is."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision
from scipy import stats
from torchvision.transforms.v2 import functional as v2

import augmentation
import transforms
from augmentation import (
    AUGMENTATIONS,
    MIX,
    WINDOW,
    colour,
    geometry,
    mix,
    noise,
    policy,
    policy_gpu,
)
from base.randomness import uniforms
from preparation import sheet
from transforms import Pipeline, sized_boxes


@pytest.fixture
def images(photographs: list[np.ndarray]) -> torch.Tensor:
    """Parts of real photographs, (6, 3, 40, 56) uint8."""
    parts = [photographs[n % 2][60 * n : 60 * n + 40, 70 * n : 70 * n + 56] for n in range(6)]
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


def near(ours: torch.Tensor, theirs: torch.Tensor, levels: float = 1) -> None:
    assert ours.dtype == theirs.dtype
    assert (ours.float() - theirs.float()).abs().max() <= levels


@pytest.mark.parametrize("turn", [-0.3, 0.0, 0.1, 0.5])
def test_hue_is_torchvision_s(images: torch.Tensor, turn: float) -> None:
    one = torch.ones(6)
    near(colour.shift_hsv(images, turn * one, one, one), v2.adjust_hue(images, turn))


def test_saturation_and_value_scale_those_of_hsv(images: torch.Tensor) -> None:
    import colorsys

    ours = colour.shift_hsv(images, torch.zeros(6), torch.full((6,), 0.5), torch.full((6,), 0.8))
    for row, column in ((0, 0), (3, 9), (20, 41)):
        red, green, blue = (images[2, :, row, column] / 255).tolist()
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected = colorsys.hsv_to_rgb(hue, 0.5 * saturation, 0.8 * value)
        assert ours[2, :, row, column].tolist() == pytest.approx(
            [255 * part for part in expected], abs=0.51
        )


@pytest.mark.parametrize("degrees", [-30, 7, 90])
def test_rotation_is_torchvision_s(images: torch.Tensor, degrees: float) -> None:
    ours = geometry.affine(images, angle=torch.full((6,), math.radians(degrees)))
    theirs = v2.rotate(images, degrees, interpolation=v2.InterpolationMode.BILINEAR)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    near(ours[inside], theirs[inside])


def test_warp_is_scipy_s(images: torch.Tensor) -> None:
    angle, scale = 0.2, 1.15
    ours = geometry.affine(
        images.float() / 255, angle=torch.full((6,), angle), scale=torch.full((6,), scale)
    )
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    centre = np.array([19.5, 27.5])
    theirs = scipy.ndimage.affine_transform(
        images[1, 0].double().numpy() / 255,
        matrix,
        centre - matrix @ centre,
        order=1,
        mode="grid-constant",
    )
    assert np.abs(ours[1, 0].numpy() - theirs).max() < 1 / 255


def test_shift_moves_by_whole_pixels_and_fills_with_black(images: torch.Tensor) -> None:
    ours = geometry.shift(images, torch.tensor([[0.99, 0.0]]).expand(6, 2), 3)
    theirs = v2.affine(images, 0, [-3, 3], 1, [0, 0])
    assert torch.equal(ours, theirs)
    assert torch.equal(geometry.shift(images, torch.full((6, 2), 0.5), 3), images)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_smoothing_is_scipy_s_gaussian(images: torch.Tensor, sigma: float) -> None:
    ours = noise.blur(images.float() / 255, torch.full((6,), sigma), 12)
    theirs = scipy.ndimage.gaussian_filter(
        images[3, 1].double().numpy() / 255, sigma, mode="nearest", radius=12
    )
    assert np.abs(ours[3, 1].numpy() - theirs).max() < 1e-5


def test_lighting_adds_what_the_paper_says(images: torch.Tensor) -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    u = torch.tensor([[0.3, 0.6, 0.9, 0.2]])
    radius = np.sqrt(-2 * np.log(1 - np.array([0.3, 0.9])))
    normal = [
        radius[0] * np.cos(2 * np.pi * 0.6),
        radius[1] * np.cos(2 * np.pi * 0.2),
        radius[0] * np.sin(2 * np.pi * 0.6),
    ]
    expected = np.array(colour.EIGENVECTORS) @ (
        0.1 * np.array(normal) * np.array(colour.EIGENVALUES)
    )
    assert (colour.lighting(grey, u) - grey)[0, :, 2, 1].tolist() == pytest.approx(
        expected.tolist(), abs=1e-6
    )
    vectors = np.array(colour.EIGENVECTORS)
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 1e-3


def test_normal_numbers_are_normal() -> None:
    values = colour.normal(uniforms(1, 0, np.arange(20_000), 4, "x"))
    for column in values.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4


def test_noise_is_normal_and_each_pixel_s_own() -> None:
    grey = torch.full((40, 3, 32, 32), 0.5)
    added = (noise.noise(grey, uniforms(1, 0, np.arange(40), 1, "noise"), 0.05) - grey).flatten()
    assert stats.kstest(added.numpy() / 0.05, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(added[:-1], added[1:])[0, 1]) < 0.01
    assert len(added.unique()) > 0.8 * len(added)


def test_vignette_darkens_as_the_formula_says() -> None:
    ours = colour.vignette(torch.ones(1, 3, 5, 7), torch.tensor([[1.0]]), 0.6)
    y, x = np.linspace(-1, 1, 5)[:, None], np.linspace(-1, 1, 7)[None, :]
    assert np.abs(ours[0, 1].numpy() - (1 - 0.6 * (x**2 + y**2) / 2)).max() < 1e-6


def test_erasing_and_cutout_hide_what_they_say(images: torch.Tensor) -> None:
    boxes = torch.tensor([[3, 5, 20, 11]]).expand(6, 4)
    fill = torch.tensor(noise.FILL, dtype=torch.uint8)[:, None, None]
    assert torch.equal(
        noise.hide(images, boxes), v2.erase(images, 5, 3, 6, 17, fill.expand(3, 6, 17))
    )
    u = uniforms(1, 0, np.arange(2000), 5, "erase")
    black = torch.zeros(2000, 3, 20, 20, dtype=torch.uint8)
    hidden = (noise.erase(black, u, 0.5) == fill).all(1).flatten(1).float().mean(1)
    assert abs((hidden > 0).float().mean() - 0.5) < 0.05
    assert 0.01 <= hidden[hidden > 0].min() <= hidden.max() <= 0.36
    square = (noise.cutout(black, torch.full((2000, 2), 0.5), 6) == fill).all(1)
    assert square.flatten(1).sum(1).eq(36).all()


OPERATIONS = {
    1: lambda x, a: v2.affine(x, 0, [0, 0], 1, [math.degrees(math.atan(a)), 0], center=[0, 0]),
    2: lambda x, a: v2.affine(x, 0, [0, 0], 1, [0, math.degrees(math.atan(a))], center=[0, 0]),
    3: lambda x, a: v2.affine(x, 0, [int(a), 0], 1, [0, 0]),
    4: lambda x, a: v2.affine(x, 0, [0, int(a)], 1, [0, 0]),
    5: lambda x, a: v2.rotate(x, a),
    6: lambda x, a: v2.adjust_brightness(x, 1 + a),
    7: lambda x, a: v2.adjust_saturation(x, 1 + a),
    8: lambda x, a: v2.adjust_contrast(x, 1 + a),
    9: lambda x, a: v2.adjust_sharpness(x, 1 + a),
    10: lambda x, a: v2.posterize(x, int(a)),
    11: lambda x, a: v2.solarize(x, a),
    12: lambda x, a: v2.autocontrast(x),
    13: lambda x, a: v2.equalize(x),
}
AMOUNTS = {1: 0.23, 2: -0.3, 3: 7.0, 4: -5.0, 5: 12.0, 10: 5.0, 11: 100.0}


@pytest.mark.parametrize("number", OPERATIONS)
def test_each_operation_of_randaugment_is_torchvision_s(images: torch.Tensor, number: int) -> None:
    amount = AMOUNTS.get(number, 0.4)
    ours = policy.OPERATIONS[number][0](images, torch.full((6,), amount))
    theirs = OPERATIONS[number](images, amount)
    different = ((ours.int() - theirs.int()).abs() > 1).float().mean()
    # Nearest-neighbour sampling may fall on either side of a pixel's edge.
    assert different <= (0.01 if number in (1, 2, 5) else 0)


def test_randaugment_chooses_evenly_and_by_its_draws(images: torch.Tensor) -> None:
    u = uniforms(1, 0, np.arange(6), 8, "randaugment")
    once = policy.randaugment(images, u, 2, 9)
    assert torch.equal(once, policy.randaugment(images, u, 2, 9))
    alone = torch.cat([policy.randaugment(images[n : n + 1], u[n : n + 1], 2, 9) for n in range(6)])
    assert torch.equal(once, alone)
    assert policy.trivial(images, uniforms(1, 0, np.arange(6), 3, "trivial")).shape == images.shape


def test_sized_crops_are_distributed_as_torchvision_s() -> None:
    count, width, height = 20_000, 500, 375
    sides = np.tile([[width, height]], (count, 1)).astype(float)
    ours = sized_boxes(
        sides, uniforms(1, 0, np.arange(count), 40, "x").double().numpy(), 0.08, 1, 4 / 3
    )
    torch.manual_seed(1)
    picture = torch.empty(3, height, width)
    theirs = np.array(
        [
            torchvision.transforms.RandomResizedCrop.get_params(picture, [0.08, 1], [3 / 4, 4 / 3])
            for _ in range(count)
        ]
    )
    wide, tall = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    for mine, other in (
        (wide * tall, theirs[:, 2] * theirs[:, 3]),
        (wide / tall, theirs[:, 3] / theirs[:, 2]),
        (ours[:, 0], theirs[:, 1]),
        (ours[:, 1], theirs[:, 0]),
    ):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3
    assert ours.min() >= 0
    assert ours[:, 2].max() <= width


def test_a_sized_crop_that_never_fits_is_the_centre() -> None:
    ours = sized_boxes(np.array([[1000.0, 10.0]]), np.full((1, 40), 0.9), 0.08, 1, 4 / 3)
    top, left, tall, wide = 0, (1000 - 13) // 2, 10, 13
    assert ours.tolist() == [[left, top, left + wide, top + tall]]


def test_ten_crops_are_torchvision_s(images: torch.Tensor) -> None:
    ours = Pipeline([], 40, 32, ten=True).cut_arrays(images, 0, np.arange(6))
    theirs = v2.ten_crop(images, [32])
    for place, mirrored in enumerate((1, 0, 3, 2, 4)):
        assert torch.equal(ours[:, place], theirs[place])
        assert torch.equal(ours[:, place].flip(3), theirs[5 + mirrored])


@pytest.mark.parametrize("wide", [False, True])
def test_a_gpu_s_way_through_the_policies_gives_the_cpu_s_images(
    photographs: list[np.ndarray], wide: bool
) -> None:
    count = 14 * 12
    part = torch.from_numpy(photographs[0].copy())[:64, 100:164].permute(2, 0, 1)
    images = part.expand(count, -1, -1, -1).contiguous()
    u = torch.rand(count, 8, generator=torch.Generator().manual_seed(1))
    u[:, 0] = (torch.arange(count) % 14 + 0.5) / 14  # each operation as often as the others
    if wide:
        ours = policy.trivial(images, u)
        prepared = policy_gpu.prepare_trivial(u.numpy(), 64)
    else:
        ours = policy.randaugment(images, u, 2, 9)
        prepared = policy_gpu.prepare_rand(u.numpy(), 64, 2, 9)
    theirs = policy_gpu.apply_layers(images, torch.from_numpy(prepared))
    off = (ours.float() - theirs.float()).abs()
    # Sharpness rounds once where the CPU rounds twice; what follows it may spread that.
    assert off.mean() < 0.1
    assert (off > 1).float().mean() < 0.01


@pytest.mark.parametrize("deterministic", [False, True])
def test_one_operation_on_a_gpu_is_within_a_level_of_the_cpu_s(
    photographs: list[np.ndarray], deterministic: bool
) -> None:
    count = 14 * 16
    part = torch.from_numpy(photographs[0].copy())[:48, 100:148].permute(2, 0, 1)
    # Black and white too: what is made brighter than white stays white.
    part = ((part.float() - 60) * 2).clamp(0, 255).to(torch.uint8)
    images = part.expand(count, -1, -1, -1).contiguous()
    u = torch.rand(count, 4, generator=torch.Generator().manual_seed(2))
    u[:, 0] = (torch.arange(count) % 14 + 0.5) / 14
    ours = policy.trivial(images, u)
    torch.use_deterministic_algorithms(deterministic)
    try:
        prepared = torch.from_numpy(policy_gpu.prepare_trivial(u.numpy(), 48))
        theirs = policy_gpu.apply_layers(images, prepared)
    finally:
        torch.use_deterministic_algorithms(False)
    off = (ours.int() - theirs.int()).abs().amax((1, 2, 3)).view(-1, 14).amax(0)
    assert off.max() <= 1, off


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_shares_of_partners_are_beta_distributed(alpha: float) -> None:
    u = uniforms(1, 0, np.arange(3000), AUGMENTATIONS["mixup"].draws, "mixup")
    drawn = [mix.beta(row, alpha) for row in u]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_and_cutmix_mix_labels_as_pixels(images: torch.Tensor) -> None:
    labels = torch.arange(6)
    u = uniforms(3, 1, np.array([4]), AUGMENTATIONS["mixup"].draws, "mixup")[0]
    mixed, soft = mix.mixup(images, labels, 6, u, 1.0)
    share = soft[0, 0].item()
    partner = int(soft[0, 1:].argmax()) + 1
    expected = share * images[0].float() + (1 - share) * images[partner].float()
    near(mixed[0], expected.round().to(torch.uint8))
    mixed, soft = mix.cutmix(images, labels, 6, u, 1.0)
    assert soft.sum(1).tolist() == pytest.approx([1] * 6)
    partner = int(soft[0, 1:].argmax()) + 1
    changed = (mixed[0] != images[0]).any(0)
    assert torch.equal(mixed[0][:, changed], images[partner][:, changed])
    assert 1 - soft[0, 0].item() >= changed.float().mean().item() - 1e-6
    alone, one = mix.mixup(images[:1], labels[:1], 6, u, 1.0)
    assert torch.equal(alone, images[:1])
    assert one[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    "name", [name for name, entry in AUGMENTATIONS.items() if entry.stage not in (WINDOW, MIX)]
)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 1, 1), (2, 3, 1, 50), (3, 3, 17, 9)])
def test_every_augmentation_takes_every_shape_and_type(name: str, shape: tuple[int, ...]) -> None:
    step = augmentation.parse(name)[0]
    function = transforms._find(step.entry.function)
    u = uniforms(1, 0, np.arange(shape[0]), step.entry.draws, name)
    pixels = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    result = function(pixels, u, *step.values)
    assert result.shape == shape
    assert result.dtype == torch.uint8
    real = function(pixels / 255, u, *step.values)
    assert real.dtype == torch.float32
    if shape[0]:
        assert 0 <= real.min() <= real.max() <= 1
        assert (real * 255 - result.float()).abs().max() <= (
            40 if name in ("randaugment", "trivial") else 1.01
        )
        alone = function(pixels[:1], u[:1], *step.values)
        assert (alone.int() - result[:1].int()).abs().max() <= 0


@pytest.mark.parametrize(
    "text", ["resizedcrop", "scale:24:40,crop", "pad:3,crop,flip,randaugment,jitter,noise,erase"]
)
def test_arrays_and_files_take_every_window(text: str, images: torch.Tensor) -> None:
    pipeline = Pipeline(augmentation.parse(text), 32, 24, seed=1)
    result = pipeline.cut_arrays(images, 3, np.arange(6))
    assert result.shape == (6, 3, 24, 24)
    assert torch.equal(result[2:3], pipeline.cut_arrays(images[2:3], 3, np.array([2])))
    assert pipeline.cut_arrays(images[:0], 3, np.arange(0)).shape == (0, 3, 24, 24)


def test_none_is_the_test_pipeline(images: torch.Tensor) -> None:
    none, test = Pipeline(augmentation.parse("none"), 40, 32, seed=4), Pipeline([], 40, 32)
    assert torch.equal(
        none.cut_arrays(images, 1, np.arange(6)), test.cut_arrays(images, 0, np.arange(6))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pad:-1", "pixels must be"),
        ("crop,resizedcrop", "exclude"),
        ("erase:0.5:0.4:0.1", "more than"),
        ("rotate:x", "number"),
    ],
)
def test_wrong_pipelines_say_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        augmentation.parse(text)
    with pytest.raises(ValueError, match="less than the crop"):
        Pipeline(augmentation.parse("scale:20:40"), 32, 24)


def test_a_sheet_shows_what_the_network_sees(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    sheet.main(["--dataset", "synthetic", "--augment", "crop,flip", "--out", str(out)])
    from PIL import Image

    with Image.open(out) as picture:
        assert picture.size == (8 * 224 + 7 * sheet.GAP, 8 * 224 + 7 * sheet.GAP)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", [name for name, entry in AUGMENTATIONS.items() if entry.stage not in (WINDOW, MIX)]
)
def test_the_gpu_gives_what_the_cpu_gives(name: str, images: torch.Tensor) -> None:
    pipeline = Pipeline(augmentation.parse(name), 32, 32, seed=1)
    draws = pipeline.draw_uniforms(0, np.arange(6))
    near(pipeline.apply_steps(images.cuda(), draws).cpu(), pipeline.apply_steps(images, draws))


@pytest.mark.parametrize("large", [0, 1 << 15])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_half_of_the_images_are_mirrored_left_right(
    images: torch.Tensor, large: int, form: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "LARGE", large)
    # One half itself is not below it.
    u = torch.tensor([0.0, 0.49, 0.5, 0.51, 0.99, 0.25])[:, None]
    expected = images.clone()
    for place in (0, 1, 5):
        expected[place] = v2.horizontal_flip(images[place])
    assert torch.equal(geometry.flip(images.contiguous(memory_format=form), u), expected)


@pytest.mark.parametrize("number", range(len(policy.OPERATIONS)))
@pytest.mark.parametrize("wide", [False, True])
def test_an_operation_of_magnitude_nothing_changes_nothing(
    images: torch.Tensor, number: int, wide: bool
) -> None:
    operation = policy.OPERATIONS[number][0]
    if operation in (policy.autocontrast, policy.equalize):
        return  # They have no magnitude.
    pick = torch.full((len(images),), (number + 0.5) / len(policy.OPERATIONS))
    none = torch.zeros(len(images))
    changed = policy.choose(images, pick, none, none, wide=wide)
    if operation is policy.solarize:
        # Only white itself is turned, as torchvision's.
        assert torch.equal(changed, torch.where(images == 255, 0, images))
    else:
        near(changed, images)


def test_grey_is_below_its_probability_and_is_torchvision_s(images: torch.Tensor) -> None:
    u = torch.tensor([0.0, 0.24, 0.25, 0.26, 0.5, 0.99])[:, None]
    changed = colour.grey(images, u, 0.25)
    near(changed[:2], v2.rgb_to_grayscale(images[:2], num_output_channels=3))
    assert torch.equal(changed[2:], images[2:])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 1), (1, 0, 1), (2, 1, 1)])
def test_a_chain_of_colour_changes_is_one_after_the_other(
    images: torch.Tensor, order: tuple[int, ...]
) -> None:
    # Within the range nothing is clipped in between, which a chain in one step cannot follow.
    values = 0.3 + 0.3 * images.float() / 255
    factors = torch.tensor([1.1, 0.7, 0.8])
    expected = values
    for operation in order:
        change = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation)[operation]
        expected = change(expected, factors[operation].item())
    chained = colour.chain(values, factors.expand(6, 3), torch.tensor([order] * 6))
    assert (chained - expected).abs().max() < 1e-3


def test_a_device_without_what_was_sent_has_it_sent(images: torch.Tensor) -> None:
    pipeline = Pipeline(augmentation.parse("flip,lighting"), 32, 32, seed=1)
    draws = pipeline.draw_uniforms(0, np.arange(6))
    changed = pipeline.apply_steps(images.to("meta"), draws)
    assert (changed.shape, changed.device.type) == (images.shape, "meta")
