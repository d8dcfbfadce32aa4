"""What a test leaves to be shown."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass
class Tested:
    """What a test leaves to be drawn. scores: (N, K) probabilities; labels, indices: (N,); images: some, by their indices."""

    scores: Tensor
    labels: Tensor
    indices: np.ndarray
    classes: list[str]
    images: Callable[[np.ndarray], Tensor]  # (n,) indices -> (n, 3, S, S) uint8, as the network sees them
