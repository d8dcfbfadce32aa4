"""The optimizer step that nothing bad gets through, and the schedule of its learning rate.

A step whose loss or gradient is not finite leaves weights, momentum, averages and running statistics as they were: the
check stays on the device, the fused kernels skip the update by it, and the host reads it some steps later, without
waiting.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import Arriving, Failed, Ranks

MOST_BAD = 3  # bad steps in a row that end the run
LATEST = 8  # steps after which the host waits for a check that it has not seen yet


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay as functions of the share of all steps that are done.

    rates, decays: (share from which on, value) in rising order of share.
    """

    rates: tuple[tuple[float, float], ...]
    decays: tuple[tuple[float, float], ...]

    def at(self, share: float) -> tuple[float, float]:
        """Return learning rate and weight decay of the step that is done at this share of the run, in [0, 1)."""
        return _last(self.rates, share), _last(self.decays, share)


def _last(table: tuple[tuple[float, float], ...], share: float) -> float:
    return [value for start, value in table if start <= share][-1]


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


def schedule(*, LR: float | None, weight_decay: float | None, first: float, regime: str = "torch7") -> Schedule:
    """Return the regime stretched over the run, from the rate `first` on; LR and weight_decay, where given, hold."""
    rates = REGIMES[regime].rates if LR is None else ((0.0, 1.0),)
    top = first if LR is None else LR
    decays = REGIMES[regime].decays if weight_decay is None else ((0.0, weight_decay),)
    return Schedule(tuple((start, top * factor) for start, factor in rates), decays)


@dataclass
class _Check:
    """A step's flag on its way to the host."""

    step: int
    LR: float
    indices: np.ndarray
    flags: Arriving  # (2,) float32: 1 for a bad step; the loss


class Updater:
    """One network's updates: `begin` before the forward pass, `apply` after it."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, ranks: Ranks) -> None:
        self.network, self.optimizer, self.schedule, self.ranks = network, optimizer, schedule, ranks
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.buffers = [b for name, b in network.named_buffers() if not name.startswith("normalise.")]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.skipped, self.in_a_row = 0, 0
        self.waiting: deque[_Check] = deque()
        self.LR = 0.0
        self.loss = float("nan")  # of the latest step that the host has seen

    def begin(self, share: float) -> None:
        """Set the learning rate of this share of the run and remember the running statistics."""
        self.LR, decay = self.schedule.at(share)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.LR * group["factor"], decay
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)

    def apply(self, loss: Tensor, step: int, indices: np.ndarray) -> Tensor:
        """Backward pass and update. loss: () of this rank's images. Returns () bool on the device: the step counted.

        Raises Failed after the third bad step in a row, with its number, learning rate and images.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        bad = self._bad(loss)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused kernels then leave all as it is
        self.optimizer.step()
        for buffer, before in zip(self.buffers, self.before, strict=True):
            torch.where(bad > 0, before, buffer, out=buffer)
        self._send(torch.stack([bad, loss.detach().float()]), step, indices)
        return bad == 0

    def _bad(self, loss: Tensor) -> Tensor:
        """Return () float32 on the device: 1 where the loss or any gradient of any rank is not finite."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        largest = torch.stack(torch._foreach_norm(gradients, float("inf")))
        finite = torch.isfinite(loss.detach()) & torch.isfinite(largest).all()
        return self.ranks.largest((~finite).to(torch.float32))

    def _send(self, flags: Tensor, step: int, indices: np.ndarray) -> None:
        self.waiting.append(_Check(step, self.LR, indices, Arriving(flags)))
        while self.waiting and (len(self.waiting) > LATEST or self.waiting[0].flags.arrived()):
            self._read(self.waiting.popleft())

    def settle(self) -> None:
        """Wait for all checks that are under way."""
        while self.waiting:
            self._read(self.waiting.popleft())

    def _read(self, check: _Check) -> None:
        bad, self.loss = check.flags.take()
        if not bad:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row == MOST_BAD:
            shown = ", ".join(str(index) for index in check.indices[:8]) + (", ..." if len(check.indices) > 8 else "")
            raise Failed(
                f"loss or gradients were not finite in {MOST_BAD} steps in a row, the last of them step {check.step + 1}, "
                f"learning rate {check.LR:g}, images {shown}: the weights are as before; try a lower --LR"
            )

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"optimizer": self.optimizer.state_dict()["state"], "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def sgd(network: nn.Module, momentum: float, *, backbone: float = 1.0) -> torch.optim.Optimizer:
    """Return SGD with its momentum made in advance: a first step that is skipped must not leave it unset.

    backbone: the learning rate of all but the last layer, as a factor.
    """
    training = [p for p in network.parameters() if p.requires_grad]
    last = list([m for m in network.modules() if list(m.parameters(recurse=False))][-1].parameters(recurse=False))
    head = [p for p in training if any(p is q for q in last)]
    rest = [p for p in training if not any(p is q for q in last)]
    groups = [{"params": rest, "factor": backbone}, {"params": head, "factor": 1.0}]
    optimizer = torch.optim.SGD([group for group in groups if group["params"]], lr=0.0, momentum=momentum, fused=True)
    if momentum:
        for parameter in training:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
