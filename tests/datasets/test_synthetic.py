"""Made-up images are noise of 96 levels over a pattern of their class, the same each time."""

import numpy as np
import pytest
import torch
from common import refused_with

from base.randomness import uniforms
from datasets import synthetic as made
from datasets.synthetic import synthetic


def test_made_up_images_are_noise_over_a_pattern_of_their_class() -> None:
    images = synthetic(None, "train", shape=(403, 3, 20))
    assert images.pixels.shape == (403, 3, 20, 20)
    assert images.classes == ["pattern 0", "pattern 1", "pattern 2"]
    # As many of each class as can be.
    assert sorted(np.bincount(images.labels).tolist()) == [134, 134, 135]
    coarse = uniforms(0, 0, np.arange(3), 48, "synthetic pattern").view(3, 3, 4, 4)
    patterns = torch.nn.functional.interpolate(160 * coarse, (20, 20), mode="bilinear")
    noise = images.pixels.float() - patterns[images.labels]
    assert noise.min() > -1
    assert noise.max() < 96
    # Of the 256 levels of a byte 3 each become one of 0 to 63, 2 one of the others.
    levels = torch.bincount((noise - 1e-3).ceil().clamp(0, 95).long().flatten(), minlength=96)
    expected = noise.numel() / 256 * torch.where(torch.arange(96) < 64, 3, 2)
    assert ((levels - expected).abs() < 0.1 * expected).all()
    # Each image is another, and the same each time.
    assert len({image.numpy().tobytes() for image in images.pixels}) == 403
    again = synthetic(None, "train", shape=(403, 3, 20))
    assert torch.equal(again.pixels, images.pixels)


@pytest.mark.parametrize(
    ("shape", "trained", "tested"),
    [((512, 10, 8), 512, 128), ((30, 10, 8), 30, 10), ((403, 3, 8), 403, 100)],
)
def test_a_quarter_as_many_test_and_each_class_is_there(
    shape: tuple[int, int, int], trained: int, tested: int
) -> None:
    train, test = synthetic(None, "train", shape=shape), synthetic(None, "test", shape=shape)
    assert (len(train), len(test)) == (trained, tested)
    assert set(test.labels.tolist()) == set(range(shape[1]))
    assert not torch.equal(train.pixels[: len(test)], test.pixels)
    assert len(synthetic(None, "train")) == 512


def test_what_would_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "MAX_BYTES", 16 * 3 * 8 * 8)
    assert len(synthetic(None, "train", shape=(16, 2, 8))) == 16
    with refused_with(r"17:2:8 would take 3264 bytes of memory: ask for fewer"):
        synthetic(None, "train", shape=(17, 2, 8))
