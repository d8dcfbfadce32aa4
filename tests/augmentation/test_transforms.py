"""What the network sees is what torchvision would show it."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as reference
from torchvision.transforms.v2 import functional as v2

import augmentation
from augmentation import colour, geometry
from augmentation.resize import crop, cut, resize, resized_boxes, resized_crop
from datasets import decode
from transforms import Pipeline, Window


def jpeg(pixels: np.ndarray, **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 92, **how})
    return buffer.getvalue()


def batch(photographs: list[np.ndarray], count: int = 6, side: int = 48) -> torch.Tensor:
    """Parts of real photographs, (count, 3, side, side) uint8."""
    parts = [
        photographs[n % 2][40 * n : 40 * n + side, 50 * n : 50 * n + side] for n in range(count)
    ]
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(
    ("image_size", "crop_size"), [(256, 224), (64, 56), (300, 300), (427, 400)]
)
def test_a_file_is_tested_as_torchvision_would(
    photographs: list[np.ndarray], image_size: int, crop_size: int
) -> None:
    """Within 1 grey level on average and 4 at worst: pretrained weights keep their accuracy."""
    pipeline = Pipeline([], image_size, crop_size)
    usual = reference.Compose([reference.Resize(image_size), reference.CenterCrop(crop_size)])
    for pixels in [*photographs, photographs[0][:, :333], photographs[1][:401, :500]]:
        data = jpeg(pixels)
        ours = read(data, pipeline).permute(1, 2, 0).numpy().astype(int)
        theirs = np.asarray(usual(Image.open(io.BytesIO(data)))).astype(int)
        difference = np.abs(ours - theirs)
        assert difference.mean() < 0.5
        assert difference.max() <= 4


@pytest.mark.parametrize("shape", [(63, 64), (64, 63), (65, 64), (64, 65), (66, 65), (126, 127)])
@pytest.mark.parametrize("side", [64, 128])
def test_an_image_almost_of_the_crop_s_size_is_not_shifted(
    photographs: list[np.ndarray], shape: tuple[int, int], side: int
) -> None:
    """torch's kernel copies an axis that keeps its size, whatever scale it is given."""
    pixels = photographs[0][: shape[0], : shape[1]]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    usual = v2.center_crop(v2.resize(image, side, antialias=True), [side, side])
    wide = torch.tensor([shape[1], shape[0]]) * side // min(shape)
    # torchvision rounds the corner up where it ends in a half and is odd, we to the even one.
    if (wide - side).max() % 2:
        usual = v2.resize(image, side, antialias=True)
        left, top = np.rint((wide.numpy() - side) / 2).astype(int)
        usual = usual[:, top : top + side, left : left + side]
    pipeline = Pipeline([], side, side)
    cut_out = pipeline.cut_arrays(image[None], 0, np.zeros(1, np.int64))[0]
    assert (cut_out.int() - usual.int()).abs().max() <= 1


def read(data: bytes, pipeline: Pipeline, index: int = 0) -> torch.Tensor:
    """Return what a worker makes of one file."""
    width, height = decode.size(data)
    window = pipeline.windows(np.array([width]), np.array([height]), 0, np.array([index]))
    return decode.read_windows(data, window.box[0], window)


@pytest.mark.parametrize(("scaled", "side", "levels"), [(140, 120, 0.5), (128, 96, 4)])
def test_random_windows_are_parts_of_the_whole_resized_image(
    photographs: list[np.ndarray], scaled: int, side: int, levels: float
) -> None:
    """A file more than twice too large is decoded at half its scale, which training lets pass (2.7
    levels).
    """
    pipeline = Pipeline(augmentation.parse("crop"), scaled, side, seed=3)
    data = jpeg(
        photographs[0][:240, :300] if levels < 1 else photographs[0], quality=100, subsampling=0
    )
    whole = np.asarray(reference.Resize(scaled)(Image.open(io.BytesIO(data)))).astype(int)
    for index in range(5):
        part = read(data, pipeline, index).permute(1, 2, 0).numpy().astype(int)
        nearest = min(
            np.abs(part - whole[top : top + side, left : left + side])[::4, ::4].mean()
            for top in range(scaled - side + 1)
            for left in range(whole.shape[1] - side + 1)
        )
        assert nearest < levels, nearest


def test_random_windows_reach_everywhere_evenly() -> None:
    pipeline = Pipeline(augmentation.parse("crop"), 36, 32, seed=3)
    sides = np.full(5000, 36)
    tops = pipeline.windows(sides, sides, 0, np.arange(5000)).box[:, 1]
    assert np.bincount(tops.astype(int), minlength=5).min() > 900


def test_a_window_over_the_border_is_black_there(photographs: list[np.ndarray]) -> None:
    data = jpeg(photographs[0][:64, :64], quality=100)
    box = np.array([-32.0, 0, 32, 64])
    out = decode.read_windows(data, box, Window(box, 64))
    assert out.shape == (3, 64, 64)
    assert out[:, :, :32].sum() == 0
    assert out[:, :, 40:].float().mean() > 10


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_kind_of_file_becomes_the_right_rgb(photographs: list[np.ndarray], mode: str) -> None:
    image = Image.fromarray(photographs[0][:60, :80])
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        image, expected = (
            Image.fromarray(grey.astype(np.uint16) * 257),
            np.repeat(grey[:, :, None], 3, 2),
        )
    else:
        image = image.convert(mode)
        expected = None
    buffer = io.BytesIO()
    image.save(
        buffer, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 95} if mode == "CMYK" else {})
    )
    if expected is None:
        expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    assert np.abs(decode.pixels(buffer.getvalue()).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("how", [{"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_every_kind_of_jpeg_is_decoded_as_pillow_does(
    photographs: list[np.ndarray], how: dict
) -> None:
    data = jpeg(photographs[1], **how)
    assert (
        np.abs(decode.pixels(data).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, world", "not a JPEG"),
        (b"\xff\xd8\xff\xe0rubbish", "."),
        (b"\x89PNG\r\n", "not a JPEG"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        decode.pixels(data)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused_and_never_half_grey(photographs: list[np.ndarray]) -> None:
    data = jpeg(photographs[0])
    with pytest.raises(ValueError):
        decode.pixels(data[: len(data) // 2])


def test_arrays_are_scaled_and_cropped_as_torchvision_does(photographs: list[np.ndarray]) -> None:
    images = batch(photographs)
    offsets = np.array([[3, 5], [0, 0], [8, 24], [1, 2], [3, 3], [7, 0]])
    matrices = resized_crop(images, (64, 64), torch.from_numpy(offsets), 40, "bicubic")
    kernel = crop(resize(images, (64, 64), "bicubic"), torch.from_numpy(offsets), 40)
    assert (matrices.int() - kernel.int()).abs().max() <= 1
    bicubic = Pipeline([], 64, 40, interpolation="bicubic").cut_arrays(images, 0, np.arange(6))
    usual = v2.resize(images, [64], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    assert (bicubic.int() - v2.center_crop(usual, [40]).int()).abs().max() <= 1
    ours = Pipeline([], 40, 32).cut_arrays(images, 0, np.arange(6))
    theirs = v2.center_crop(v2.resize(images, [40], antialias=True), [32])
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert torch.equal(
        resize(images, (30, 36), "bilinear"), v2.resize(images, [30, 36], antialias=True)
    )


def test_crops_with_padding_are_the_right_parts(photographs: list[np.ndarray]) -> None:
    images = batch(photographs, 5, 20)
    offsets = np.array([[-4, -4], [4, 4], [0, 0], [-4, 4], [2, -3]])
    ours = crop(images, torch.from_numpy(offsets), 20, 4)
    for image, (left, top), got in zip(images, offsets.tolist(), ours, strict=True):
        assert torch.equal(got, v2.crop(v2.pad(image, [4]), top + 4, left + 4, 20, 20))


def test_flip_mirrors_where_it_should(photographs: list[np.ndarray]) -> None:
    images = batch(photographs, 2)
    assert torch.equal(
        geometry.flip(images, torch.tensor([[0.4], [0.6]])),
        torch.stack([v2.horizontal_flip(images[0]), images[1]]),
    )


FACTORS = {0: v2.adjust_brightness, 1: v2.adjust_contrast, 2: v2.adjust_saturation}


@pytest.mark.parametrize("operation", FACTORS)
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_each_colour_operation_is_torchvision_s(
    photographs: list[np.ndarray], operation: int, factor: float
) -> None:
    images = batch(photographs)
    ours = colour.chain(images, torch.full((6, 3), factor), torch.full((6, 1), operation))
    assert (ours.int() - FACTORS[operation](images, factor).int()).abs().max() <= 1


def test_a_chain_of_colour_operations_is_torchvision_s_where_nothing_clamps(
    photographs: list[np.ndarray],
) -> None:
    images = (
        batch(photographs) // 2 + 50
    )  # far from black and white: clamping once or thrice is the same
    factors = torch.tensor([[0.8, 1.2, 0.7]]).expand(6, 3)
    for order in colour.ORDERS:
        theirs = images.float() / 255
        for operation in order:
            theirs = FACTORS[operation](theirs, factors[0, operation].item())
        ours = colour.chain(images, factors, torch.tensor([order]).expand(6, 3))
        assert (ours.float() - 255 * theirs).abs().max() <= 1


@given(st.permutations(range(6)))
@settings(max_examples=15, deadline=None)
def test_an_image_does_not_depend_on_its_batch(order: list[int]) -> None:
    pipeline = Pipeline(augmentation.parse("pad:4,crop,flip,jitter:0.4"), 24, 24, seed=5)
    pixels = torch.randint(
        0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )

    def run(indices: np.ndarray) -> torch.Tensor:
        images = pipeline.cut_arrays(pixels[torch.from_numpy(indices)], 2, indices)
        return pipeline.apply_steps(images, pipeline.draw_uniforms(2, indices))

    together = run(np.arange(6))
    shuffled = run(np.array(order))
    for place, index in enumerate(order):
        assert torch.equal(shuffled[place], together[index])
        assert torch.equal(run(np.array([index]))[0], together[index])


def test_adding_an_augmentation_changes_no_other() -> None:
    indices = np.arange(10)
    few, many = (
        Pipeline(augmentation.parse(text), 32, 32, seed=1) for text in ("flip", "flip,jitter:0.4")
    )
    assert torch.equal(few.draw_uniforms(0, indices), many.draw_uniforms(0, indices)[:, :1])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 1, 1), (2, 3, 1, 50), (2, 1, 9, 9)])
def test_odd_shapes_work(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape, dtype=torch.uint8)
    assert geometry.flip(images, torch.zeros(shape[0], 1)).shape == shape
    if shape[1] == 3:
        assert colour.jitter(images, torch.zeros(shape[0], 4)).shape == shape


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_gpu_s_way_to_cut_boxes_gives_the_cpu_s_pixels(
    photographs: list[np.ndarray], interpolation: str, whole: bool
) -> None:
    pixels = torch.from_numpy(photographs[0].copy()).permute(2, 0, 1)[None].expand(4, -1, -1, -1)
    boxes = np.array([[0.0, 0, 400, 400], [10, 20, 234, 244], [100, 7, 190, 97], [3, 3, 423, 410]])
    gpus = resized_boxes(pixels, torch.from_numpy(boxes).float(), 64, whole, interpolation)
    for image, box, ours in zip(pixels, boxes, gpus, strict=True):
        cpus = cut(image[None], box, 64, whole, interpolation)[0]
        off = (cpus.float() - ours.float()).abs()
        # Where pixels beyond the box count, the CPU moves the window by up to 1/64 of a pixel.
        assert off.mean() < (0.5 if whole else 0.1)
        assert whole or off.max() <= 2


@pytest.mark.parametrize("steps", ["flip", "shift:2,flip,jitter:0.4", "none"])
def test_what_is_finished_in_place_is_what_the_steps_give(steps: str) -> None:
    pixels = torch.randint(0, 256, (9, 16, 16, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    pipeline = Pipeline(augmentation.parse(steps), 16, 16, seed=5)
    draws = pipeline.draw_uniforms(3, np.arange(9))
    wanted = pipeline.apply_steps(pixels.clone(), draws)
    turned = [bool((wanted[n] != pixels[n]).any()) for n in range(9)]
    assert any(turned) == (steps != "none")
    pipeline.finish(pixels, draws)
    assert torch.equal(pixels, wanted)
