"""One number that makes probabilities mean what they say: Guo et al. 2017, arXiv 1706.04599,
section 4.2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Of its logarithm: a network is never a hundred times too sure.
LIMITS = (math.log(0.01), math.log(100.0))
# Each narrows the interval to 0.618 of it: to 1e-9 of a temperature.
STEPS = 48


def fit(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that logits are to be divided by: the mean loss is lowest with it.

    logits: (N, K); labels: (N,). The loss is convex in 1 / temperature, so that a golden-section
    search finds its only minimum.
    """
    logits = logits.double()

    def loss(logarithm: float) -> float:
        return F.cross_entropy(logits / math.exp(logarithm), labels).item()

    low, high = LIMITS
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


@torch.no_grad()
def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return probabilities, (N, K)."""
    return (logits / temperature).softmax(1)
