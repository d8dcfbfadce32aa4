"""What several tests share."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

settings.register_profile(
    "here", deadline=None, derandomize=True
)  # the same examples on any machine, at any speed
settings.load_profile("here")
torch.set_num_threads(1)  # tests fork: no thread may have started before
# Who runs tests in the background (nohup, a shell's &) ignores some signals. Programs that are
# started here must not: a handler that does nothing is not handed on to them.
for _number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Two real photographs, (427, 640, 3) uint8, that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder data set of 3 classes, 24 training and 9 test images, JPEG and PNG."""
    from rig import make_images

    folder = make_images(tmp_path / "images", 24)
    for number in range(3):
        path = folder / "val" / f"class {number}" / "more.PNG"
        Image.fromarray(np.full((20, 26, 3), 80 * number, np.uint8)).save(path)
    return folder
