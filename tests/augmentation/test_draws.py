"""Random numbers reach each image by epoch, image and step, on every way; what is drawn is
distributed as it is said.
"""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy import stats
from torch import Tensor

import augmentation
import transforms
from augmentation import AUGMENTATIONS, MIX, WINDOW, colour, geometry, mix, noise, policy
from base.randomness import shuffled, uniforms
from transforms import Pipeline

COUNT = 64
# Steps that leave some images, or all with their usual values, as they are.
SELDOM = {"grey": 1.0, "erase": 1.0, "mul": 0.5}


@pytest.fixture
def pixels() -> Tensor:
    """(64, 3, 24, 24) uint8, no two alike and no symmetry."""
    return torch.from_numpy(np.random.default_rng(3).integers(1, 255, (COUNT, 3, 24, 24), np.uint8))


def pipeline(text: str, seed: int = 0) -> Pipeline:
    return Pipeline(augmentation.parse(text), 24, 20, seed=seed)


def seen(way: Pipeline, pixels: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
    """Return what the network sees of these images of an array."""
    rows = torch.from_numpy(indices)
    images = way.cut_arrays(pixels[rows], epoch, indices)
    return way.apply_steps(images, way.draw_uniforms(epoch, indices))


def text_of(name: str) -> str:
    return f"{name}:{SELDOM[name]}" if name in SELDOM else name


STEPS = [name for name, entry in AUGMENTATIONS.items() if WINDOW < entry.stage < MIX]
DRAWN = [name for name in STEPS if AUGMENTATIONS[name].draws]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_asked_for_is_done(name: str, pixels: Tensor) -> None:
    every = np.arange(COUNT)
    plain = seen(pipeline("none"), pixels, 1, every)
    done = seen(pipeline(text_of(name)), pixels, 1, every)
    changed = (plain != done).flatten(1).any(1).float().mean()
    # A flip mirrors every second image; others change nearly all.
    assert changed > (0.3 if name == "flip" else 0.6)


@pytest.mark.parametrize("name", [*DRAWN, "crop", "resizedcrop", "scale:22:30,crop"])
def test_an_epoch_an_image_and_a_seed_have_draws_of_their_own(name: str, pixels: Tensor) -> None:
    text = "grey:0.5" if name == "grey" else text_of(name)
    way, every = pipeline(text), np.arange(COUNT)
    same = pixels[:1].expand(COUNT, -1, -1, -1)
    first = seen(way, same, 1, every)
    assert torch.equal(first, seen(way, same, 1, every))
    for other in (seen(way, same, 2, every), seen(pipeline(text, 1), same, 1, every)):
        assert (first != other).flatten(1).any(1).float().mean() > 0.2
    # One picture under 64 numbers: most look different from the first.
    assert (first[1:] != first[:1]).flatten(1).any(1).float().mean() > 0.2


@pytest.mark.parametrize("name", [*DRAWN, "crop", "resizedcrop"])
def test_a_place_in_the_batch_draws_nothing(name: str, pixels: Tensor) -> None:
    way, every = pipeline(text_of(name)), np.arange(COUNT)
    whole = seen(way, pixels, 1, every)
    order = np.random.default_rng(1).permutation(COUNT)[:10]
    assert torch.equal(seen(way, pixels, 1, order), whole[torch.from_numpy(order)])


def test_steps_draw_apart_from_each_other() -> None:
    way = pipeline("rotate,flip,brightness,contrast,saturation")
    draws = way.draw_uniforms(3, np.arange(2000)).numpy()
    assert draws.shape == (2000, 5)
    correlations = np.corrcoef(draws.T) - np.eye(5)
    assert np.abs(correlations).max() < 0.1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001


def test_windows_of_epochs_and_images_are_apart() -> None:
    way, every = pipeline("pad:4,crop"), np.arange(500)
    sides = np.full(500, 24)
    corners = [way.windows(sides, sides, epoch, every).box[:, :2] for epoch in (0, 1)]
    for axis in (0, 1):
        first, second = corners[0][:, axis], corners[1][:, axis]
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
        # From 4 beyond one border to 4 beyond the other, each whole place as often.
        places, counts = np.unique(first, return_counts=True)
        assert places.tolist() == list(range(-4, 9))
        assert stats.chisquare(counts).pvalue > 0.001
    assert abs(np.corrcoef(corners[0].T)[0, 1]) < 0.2


def test_the_order_of_an_epoch_is_its_own() -> None:
    orders = [shuffled(np.arange(1000), 1000, 7, epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
    assert (orders[0] == orders[1]).mean() < 0.02
    assert abs(np.corrcoef(orders)[0, 1]) < 0.16  # five deviations of 1000 pairs


def test_a_flip_mirrors_left_and_right_only(pixels: Tensor) -> None:
    u = torch.tensor([[0.49], [0.5], [0.0], [0.999]])
    flipped = geometry.flip(pixels[:4], u)
    mirrored = [torch.equal(flipped[n], pixels[n].flip(2)) for n in range(4)]
    left = [torch.equal(flipped[n], pixels[n]) for n in range(4)]
    assert sorted(zip(mirrored, left, strict=True)) == [(False, True)] * 2 + [(True, False)] * 2
    assert mirrored[0] == mirrored[2] != mirrored[1]


def test_turn_enlarge_shear_and_move_are_scipy_s_affine(pixels: Tensor) -> None:
    angle, factor, slant, move = 0.3, 1.2, (0.25, -0.15), (3.0, -2.0)
    one = torch.ones(1)
    ours = geometry.affine(
        pixels[:1].float() / 255,
        angle=angle * one,
        scale=factor * one,
        shear=torch.tensor([slant]),
        move=torch.tensor([move]),
    )
    cosine, sine = math.cos(angle), math.sin(angle)
    # In rows and columns, from the result to the source: shear, then turn, then shrink.
    turn = np.array([[cosine, sine], [-sine, cosine]])
    sheared = np.array([[1, slant[1]], [slant[0], 1]])
    matrix = turn @ sheared / factor
    centre = np.array([11.5, 11.5])
    offset = centre - matrix @ (centre + np.array([move[1], move[0]]))
    theirs = scipy.ndimage.affine_transform(
        pixels[0, 1].double().numpy() / 255, matrix, offset, order=1, mode="grid-constant"
    )
    assert np.abs(ours[0, 1].numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize(
    "operation",
    [policy.autocontrast, policy.equalize, policy.contrast, policy.sharpness, policy.brightness],
)
def test_policies_treat_floats_as_bytes(operation: object, pixels: Tensor) -> None:
    narrow = (pixels[:8] // 3 + 40).to(torch.uint8)
    amount = torch.full((8,), 0.5)
    whole = operation(narrow, amount)  # type: ignore[operator]
    parts = operation(narrow.float() / 255, amount)  # type: ignore[operator]
    assert parts.dtype == torch.float32
    assert (parts * 255 - whole.float()).abs().max() <= 1.01


def test_each_operation_of_a_policy_is_chosen_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    count, counted = 14_000, [0] * len(policy.OPERATIONS)
    usual = policy.amounts_of

    def seen_rows(number: int, share: Tensor, *more: object, **named: object) -> Tensor:
        counted[number] += len(share)
        return usual(number, share, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(policy, "amounts_of", seen_rows)
    images = torch.zeros(count, 3, 2, 2, dtype=torch.uint8)
    policy.randaugment(images, uniforms(5, 0, np.arange(count), 8, "randaugment"), 1, 9)
    counted[0] = count - sum(counted)  # identity has no amount
    assert stats.chisquare(counted).pvalue > 0.001


def test_magnitudes_and_signs_are_those_of_the_papers() -> None:
    sign = torch.tensor([0.2, 0.8])
    full, number = torch.ones(2), {f.__name__: n for n, (f, *_) in enumerate(policy.OPERATIONS)}
    amounts = {
        name: policy.amounts_of(number[name], full, sign, 331, wide=False).tolist()
        for name in ("shear_x", "translate_x", "rotate", "brightness", "posterize", "solarize")
    }
    assert amounts["shear_x"] == pytest.approx([0.3, -0.3])
    assert amounts["translate_x"] == pytest.approx([150, -150])
    assert amounts["rotate"] == pytest.approx([30, -30])
    assert amounts["brightness"] == pytest.approx([0.9, -0.9])
    assert amounts["posterize"] == pytest.approx([4, 4])
    assert amounts["solarize"] == pytest.approx([0, 0])
    wide = policy.amounts_of(number["translate_y"], full, sign, 331, wide=True)
    assert wide.tolist() == pytest.approx([32, -32])
    half = policy.amounts_of(number["posterize"], full / 2, sign, 331, wide=True)
    assert half.tolist() == pytest.approx([5, 5])


@pytest.mark.parametrize("name", ["mixup:1", "cutmix"])
def test_batches_are_mixed_by_epoch_and_batch(name: str, pixels: Tensor) -> None:
    way, labels = pipeline(name), torch.arange(COUNT) % 5
    images, targets = way.mix(pixels, labels, 5, 1, 0)
    assert targets.shape == (COUNT, 5)
    assert targets.sum(1).numpy() == pytest.approx(np.ones(COUNT), abs=1e-6)
    assert not torch.equal(images, pixels)
    shares = []
    for epoch, batch in ((1, 0), (1, 1), (2, 0)):
        again, mixed = way.mix(pixels, labels, 5, epoch, batch)
        shares.append(mixed[0, 0].item())
        assert torch.equal(again, images) == ((epoch, batch) == (1, 0))
    assert len(set(shares)) == 3
    assert way.mix(pixels, labels, 5, 1, 0)[1].equal(targets)


def test_no_image_is_its_own_partner(pixels: Tensor) -> None:
    for last in (0.0, 0.5, 0.999):
        u = torch.cat([torch.full((10,), 0.5), torch.tensor([0.5, 0.5, last])])
        mixed, targets = mix.mixup(pixels[:7], torch.arange(7), 7, u, 1.0)
        assert (targets > 0).sum(1).tolist() == [2] * 7
        shift = int(targets[0].gt(0).nonzero()[-1])
        expected = (pixels[:7].float() + pixels[:7].roll(-shift, 0).float()) / 2
        other = (pixels[:7].float() + pixels[:7].roll(shift, 0).float()) / 2
        found = mixed.float()
        assert min((found - expected).abs().max(), (found - other).abs().max()) <= 0.5
    alone, targets = mix.mixup(pixels[:1], torch.zeros(1).long(), 7, u, 1.0)
    assert torch.equal(alone, pixels[:1])
    assert targets[0, 0] == 1


def test_a_cut_box_and_its_labels_have_one_area(pixels: Tensor) -> None:
    u = uniforms(2, 0, np.arange(200), AUGMENTATIONS["cutmix"].draws, "cutmix")
    areas = []
    for row in u:
        mixed, targets = mix.cutmix(pixels[:3], torch.arange(3), 3, row)
        changed = (mixed != pixels[:3]).any(1).flatten(1).float().mean(1)
        kept = targets[torch.arange(3), torch.arange(3)]
        assert (1 - kept - changed).abs().max() < 0.03
        areas.append(float(1 - kept[0]))
    # Of a share v of Beta(1, 1) the border leaves (sqrt(v) - v / 4)^2: 0.32 on average, less what
    # whole pixels cut off.
    assert 0.25 < np.mean(areas) < 0.35
    assert min(areas) < 0.05
    assert max(areas) > 0.8


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_drawn_evenly_about_one(name: str, pixels: Tensor) -> None:
    function = getattr(colour, name)
    grey = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    grey[:, 0] += 60
    results = [function(grey, torch.full((3, 1), u), 0.4)[0].float() for u in (0.0, 0.5, 1.0)]
    low, middle, high = (result.sub(results[1]).abs().max().item() for result in results)
    assert torch.equal(results[1], grey[0].float())
    assert low > 0
    assert abs(low - high) <= 1
    assert middle == 0


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    grey = torch.full((200, 3, 16, 16), 128, dtype=torch.uint8)
    u = uniforms(1, 0, np.arange(200), AUGMENTATIONS["noise"].draws, "noise")
    deviations = (noise.noise(grey, u, 0.1).float() - 128).flatten(1).std(1) / 255
    assert deviations.max() <= 0.11
    assert deviations.mean() > 0.01


def test_transforms_knows_what_varies() -> None:
    assert pipeline("resizedcrop").varied
    assert pipeline("scale:24:30,crop").varied
    assert not pipeline("pad:2,crop").varied
    with pytest.raises(ValueError, match="scale:10 is less than the crop's 20 pixels"):
        pipeline("scale:10:30,crop")
    assert transforms.TRAIN_HEADROOM < transforms.TEST_HEADROOM
