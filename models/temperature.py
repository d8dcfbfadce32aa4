"""One number that makes probabilities mean what they say: Guo et al. 2017, arXiv 1706.04599,
section 4.2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Of its logarithm. One that has hardly been trained can be a thousand times too sure.
LIMITS = (math.log(1e-4), math.log(1e4))
# Each narrows the interval to 0.618 of it: to 1e-9 of a temperature.
STEPS = 50


def fit(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature that logits are to be divided by: the mean loss is lowest with it;
    None where it has no lowest value: it falls as the temperature does where all images are right,
    and as it rises where the network knows less than chance.

    logits: (N, K); labels: (N,). The loss is convex in 1 / temperature, so that a golden-section
    search finds its only minimum.
    """
    if bool((logits.argmax(1) == labels).all()):
        return None
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
    found = (low + high) / 2
    return None if LIMITS[1] - found < 1e-3 else math.exp(found)


@torch.no_grad()
def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return probabilities, (N, K)."""
    return (logits / temperature).softmax(1)
