"""A learning-rate range test: the rate rises from step to step until the loss does.

Smith 2017, arXiv 1506.01186, section 3.3, with a rate that rises by a factor, not by a summand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
# Of the rate at which the loss is lowest, where it no longer falls.
SHARE_OF_LOWEST = 0.1


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
        """A highest rate for a run, two digits; None where the loss never fell."""
        smoothed = self.smoothed
        # A loss that only rises was lowest at the beginning.
        if len(smoothed) < MIN_STEPS // 2 or min(smoothed) > 0.95 * smoothed[0]:
            return None
        lowest = self.rates[smoothed.index(min(smoothed))]
        return float(f"{SHARE_OF_LOWEST * lowest:.1e}")


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
