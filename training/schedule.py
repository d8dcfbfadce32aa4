"""Learning rate and weight decay as functions of the share of all steps that are done.

By share, not by step: a run that goes on with another batch size keeps its place.
"""

import math
from dataclasses import dataclass

KINDS = ("regime", "step", "cosine", "onecycle", "constant")
FLOOR = 0.01  # of its rate that a warm-up begins with, as in torchvision's references
RISE, START, END = 0.3, 1 / 25, 1e-4 / 25  # torch's OneCycleLR: share that rises, first and last factor of the rate


@dataclass(frozen=True)
class Regime:
    """Factors of the first learning rate, and weight decays, each from a share of the run on."""

    rates: tuple[tuple[float, float], ...]
    decays: tuple[tuple[float, float], ...]


REGIMES = {
    # The Torch7 suite's 55 epochs: LR 1e-2 to epoch 18, 5e-3 to 29, 1e-3 to 43, 5e-4 to 52, 1e-4; weight decay to 29.
    "torch7": Regime(
        ((0.0, 1.0), (18 / 55, 0.5), (29 / 55, 0.1), (43 / 55, 0.05), (52 / 55, 0.01)), ((0.0, 5e-4), (29 / 55, 0.0))
    ),
    # Zagoruyko's 35 epochs for Network in Network: LR 1e-1 to epoch 9, 1e-2 to 19, 1e-3 to 25, 1e-4.
    "nin": Regime(((0.0, 1.0), (9 / 35, 0.1), (19 / 35, 0.01), (25 / 35, 0.001)), ((0.0, 5e-4), (19 / 35, 0.0))),
}
THIRDS = ((0.0, 1.0), (1 / 3, 0.1), (2 / 3, 0.01))  # He 2015, arXiv 1512.03385: 30, 60 of 90 epochs


@dataclass(frozen=True)
class Schedule:
    """rate: the highest; warmup: share of the run in which it rises to that, linearly; decays: (share from which on, value)."""

    kind: str
    rate: float
    rates: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    decays: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    warmup: float = 0.0

    def at(self, share: float) -> tuple[float, float]:
        """Return learning rate and weight decay of the step that is done at this share of the run, in [0, 1)."""
        if share < self.warmup:
            return self.rate * (FLOOR + (1 - FLOOR) * share / self.warmup), _last(self.decays, share)
        return self.rate * self._factor(share), _last(self.decays, share)

    def _factor(self, share: float) -> float:
        if self.kind == "cosine":  # Loshchilov 2016, arXiv 1608.03983, one period, to 0
            return _cosine(1.0, 0.0, (share - self.warmup) / (1 - self.warmup))
        if self.kind == "onecycle":  # Smith 2017, arXiv 1708.07120, as torch's OneCycleLR has it
            if share < RISE:
                return _cosine(START, 1.0, share / RISE)
            return _cosine(1.0, END, (share - RISE) / (1 - RISE))
        return _last(self.rates, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _last(table: tuple[tuple[float, float], ...], share: float) -> float:
    return [value for start, value in table if start <= share][-1]


def schedule(
    *, LR: float | None, weight_decay: float | None, first: float, regime: str = "torch7", kind: str | None = None,
    warmup: float = 0.0,
) -> Schedule:  # fmt: skip
    """Return a schedule of the kind; without one LR, where given, holds, else the regime is stretched over the run.

    first, regime: the network's own rate and regime; warmup: share of the run. Weight decay is the regime's, which drops
    it late; the step, cosine and onecycle kinds keep it to the end; weight_decay, where given, holds.
    """
    kind = kind or ("regime" if LR is None else "constant")
    decays = REGIMES[regime].decays if kind in ("regime", "constant") else REGIMES[regime].decays[:1]
    if weight_decay is not None:
        decays = ((0.0, weight_decay),)
    rates = {"regime": REGIMES[regime].rates, "step": THIRDS}.get(kind, ((0.0, 1.0),))
    return Schedule(kind, first if LR is None else LR, rates, decays, warmup)
