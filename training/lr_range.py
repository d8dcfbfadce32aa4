"""A learning-rate range test: the rate rises from step to step until the loss does.

Smith 2017, arXiv 1506.01186, section 3.3, with a rate that rises by a factor, not by a summand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# From a rate that changes nothing to one that no network survives.
FIRST_RATE, LAST_RATE = 1e-5, 10.0
MAX_STEPS = 100
# Fewer say too little.
MIN_STEPS = 30
# Seconds that all steps together may take.
MAX_SECONDS = 45.0
# Times the lowest loss so far, above which it has diverged.
DIVERGED = 4.0
# Of the exponential mean over the losses of steps, without its bias (as of Adam's moments).
SMOOTHING = 0.9
# Share of its fall that the loss has risen again where rates are too high, and the share of the
# rate before that which is suggested.
RISEN, SHARE = 0.1, 0.2
# A fall of fewer standard deviations is chance.
MIN_DEVIATIONS = 8.0


@dataclass(frozen=True)
class Rising:
    """A schedule of the test: learning rate and weight decay by the share of its steps."""

    decay: float

    def at(self, share: float) -> tuple[float, float]:
        """Return learning rate and weight decay at this share of the test, in [0, 1]."""
        return FIRST_RATE * (LAST_RATE / FIRST_RATE) ** share, self.decay


@dataclass(frozen=True)
class RangeTest:
    """What the test found: learning rates of its steps, and their losses."""

    rates: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        """The losses' exponential mean."""
        return smooth(self.losses)

    @property
    def suggestion(self) -> float | None:
        """A highest rate for a run, two digits; None where the loss never fell.

        Where the loss is lowest is chance on a flat bottom: what counts is where it rises again.
        """
        smoothed = self.smoothed
        if len(smoothed) < MIN_STEPS // 2:
            return None
        count = max(1, len(smoothed) // 10)
        lowest = min(smoothed[count:])
        fall = float(np.mean(self.losses[:count])) - lowest
        if not fall > MIN_DEVIATIONS * self._deviation():
            return None
        last = smoothed.index(lowest, count)
        while last + 1 < len(smoothed) and smoothed[last + 1] <= lowest + RISEN * fall:
            last += 1
        return float(f"{SHARE * self.rates[last]:.1e}")

    def _deviation(self) -> float:
        """Return the standard deviation of the smoothed loss, by how the loss of the first third of
        the steps changes from one to the next: rates are low there.
        """
        first = self.losses[: max(3, len(self.losses) // 3)]
        of_one = float(np.diff(first).std()) / math.sqrt(2)
        # An exponential mean's share of its summands' deviation.
        return of_one * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the exponential mean of the losses up to each of them."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def has_diverged(losses: Sequence[float]) -> bool:
    """True where going on would tell nothing."""
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(losses)
    return smoothed[-1] > DIVERGED * min(smoothed)


def steps_in_time(seconds: float) -> int:
    """Return the steps of a test whose steps take so many seconds."""
    return max(MIN_STEPS, min(MAX_STEPS, int(MAX_SECONDS / max(seconds, 1e-9))))
