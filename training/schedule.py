"""Learning rate and weight decay as functions of the share of all steps that are done.

By share, not by step: a run that resumes with another batch size keeps its place. Nothing here
imports torch.
"""

import math
from dataclasses import dataclass
from typing import Protocol

KINDS = ("regime", "step", "cosine", "onecycle", "constant")

# A warm-up begins with this share of its rate, as in torchvision's references.
WARMUP_START = 0.01
# torch's OneCycleLR: share of the run that rises, first and last factor of the rate.
ONECYCLE_RISE = 0.3
ONECYCLE_START = 1 / 25
ONECYCLE_END = 1e-4 / 25

Table = tuple[tuple[float, float], ...]  # (share of the run from which on, value)


@dataclass(frozen=True)
class Regime:
    """Factors of the first learning rate, and weight decays, each from a share of the run on."""

    rates: Table
    decays: Table


REGIMES = {
    # The Torch7 suite's 55 epochs: LR 1e-2 to epoch 18, 5e-3 to 29, 1e-3 to 43, 5e-4 to 52, 1e-4;
    # weight decay to 29.
    "torch7": Regime(
        rates=((0.0, 1.0), (18 / 55, 0.5), (29 / 55, 0.1), (43 / 55, 0.05), (52 / 55, 0.01)),
        decays=((0.0, 5e-4), (29 / 55, 0.0)),
    ),
    # Zagoruyko's 35 epochs for Network in Network: LR 1e-1 to epoch 9, 1e-2 to 19, 1e-3 to 25,
    # 1e-4.
    "nin": Regime(
        rates=((0.0, 1.0), (9 / 35, 0.1), (19 / 35, 0.01), (25 / 35, 0.001)),
        decays=((0.0, 5e-4), (19 / 35, 0.0)),
    ),
}
# He 2015, arXiv 1512.03385: 30, 60 of 90 epochs.
THIRDS = ((0.0, 1.0), (1 / 3, 0.1), (2 / 3, 0.01))


class Rates(Protocol):
    """What an updater asks for: a learning rate and a weight decay, by the share that is done."""

    def at(self, share: float) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Schedule:
    """A learning rate and a weight decay for each share of the run.

    rate: the highest; warmup: share of the run in which it rises to that, linearly.
    """

    kind: str
    rate: float
    rates: Table = ((0.0, 1.0),)
    decays: Table = ((0.0, 0.0),)
    warmup: float = 0.0

    def at(self, share: float) -> tuple[float, float]:
        """Return learning rate and weight decay of the step that is done at this share of the run,
        in [0, 1).
        """
        decay = _last(self.decays, share)
        if share < self.warmup:
            return self.rate * (WARMUP_START + (1 - WARMUP_START) * share / self.warmup), decay
        return self.rate * self._factor(share), decay

    def _factor(self, share: float) -> float:
        # Loshchilov 2016, arXiv 1608.03983, one period, to 0.
        if self.kind == "cosine":
            return _cosine(1.0, 0.0, (share - self.warmup) / (1 - self.warmup))
        # Smith 2017, arXiv 1708.07120, as torch's OneCycleLR has it.
        if self.kind == "onecycle":
            if share < ONECYCLE_RISE:
                return _cosine(ONECYCLE_START, 1.0, share / ONECYCLE_RISE)
            return _cosine(1.0, ONECYCLE_END, (share - ONECYCLE_RISE) / (1 - ONECYCLE_RISE))
        return _last(self.rates, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _last(table: Table, share: float) -> float:
    return [value for start, value in table if start <= share][-1]


def make_schedule(
    *,
    lr: float | None,
    weight_decay: float | None,
    first: float,
    regime: str = "torch7",
    kind: str | None = None,
    warmup: float = 0.0,
) -> Schedule:
    """Return a schedule of the kind; without one a given lr is constant, else the regime is
    stretched over the run.

    first, regime: the network's own rate and regime; warmup: share of the run. Weight decay is the
    regime's, which drops it late; the step, cosine and onecycle kinds keep it to the end; a given
    weight_decay is constant.
    """
    kind = kind or ("regime" if lr is None else "constant")
    decays = REGIMES[regime].decays
    if weight_decay is not None:
        decays = ((0.0, weight_decay),)
    elif kind not in ("regime", "constant"):
        decays = decays[:1]

    rates = {"regime": REGIMES[regime].rates, "step": THIRDS}.get(kind, ((0.0, 1.0),))
    return Schedule(kind, first if lr is None else lr, rates, decays, warmup)
