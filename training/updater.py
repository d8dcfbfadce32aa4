"""The optimizer step that nothing bad gets through.

A step whose loss or gradient is not finite leaves weights, momentum, averages and running
statistics as they were. The check stays on the device: the fused kernels skip the update by it, and
the host reads it some steps later, without waiting.
"""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from base.archive import State
from base.errors import Failed
from training.batchnorm import SyncBatchNorm
from training.ranks import Ranks
from training.schedule import Rates
from utils import AsyncCopy

# Bad steps in a row that end the run.
MAX_BAD = 3
# With fp16: a scale of 2^16 that halves at each of them is far below 1 then.
MAX_BAD_SCALED = 24
# Steps after which the host waits for a check that it has not seen yet.
READ_LAG = 8
# torch's GradScaler: the first scale, and the good steps after which it doubles.
FIRST_SCALE = 2.0**16
DOUBLED_AFTER = 2000


@dataclass
class _Check:
    """A step's flag on its way to the host."""

    step: int
    lr: float
    indices: np.ndarray
    flags: AsyncCopy  # (2,) float32: 1 for a bad step; the loss


class LossScale:
    """What the loss is multiplied by in fp16, so that small gradients do not vanish.

    Stays on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((1,), FIRST_SCALE, device=device)
        self.good = torch.zeros(1, dtype=torch.int32, device=device)

    def update(self, bad: Tensor) -> None:
        torch._amp_update_scale_(self.value, self.good, bad, 2.0, 0.5, DOUBLED_AFTER)


# What each optimizer keeps of a parameter.
STATES = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


class Updater:
    """One network's updates: `begin` before the forward pass, `backward` of each part of the batch,
    then `apply`.

    clip: largest norm of all gradients together; average: decay of the averaged weights; scaled:
    with fp16's loss scale.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Rates,
        ranks: Ranks,
        *,
        clip: float | None = None,
        average: float | None = None,
        scaled: bool = False,
    ) -> None:
        self.network, self.ranks = network, ranks
        self.optimizer, self.schedule = optimizer, schedule
        self.clip, self.decay = clip, average
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.buffers = flatten_buffers(network)
        self.before = [buffer.clone() for buffer in self.buffers]

        # A share of one image has no deviation that batch norm could divide by.
        self.least_images = 2 if has_batch_norm(network) else 1

        # Of the averaged weights.
        self.updates = 0
        self.averaged: nn.Module | None = None
        if average is not None:
            self.averaged = copy.deepcopy(network).requires_grad_(False).eval()
        self.scale = LossScale(self.parameters[0].device) if scaled else None
        self.max_bad = MAX_BAD_SCALED if scaled else MAX_BAD

        self.skipped = 0
        self.in_a_row = 0
        self.waiting: deque[_Check] = deque()
        self.lr = 0.0

        # Of the latest step that the host has seen.
        self.loss = float("nan")

    @property
    def network_for_eval(self) -> nn.Module:
        """The network that is tested and kept: the averaged one, where there is one."""
        return self.network if self.averaged is None else self.averaged

    def begin(self, share: float) -> None:
        """Set the learning rate of this share of the run and remember the running statistics."""
        self.lr, decay = self.schedule.at(share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["factor"]
            group["weight_decay"] = decay * group["decays"]
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradients.

        loss: (), the part's share of the global batch's loss, times the ranks.
        """
        (loss if self.scale is None else loss * self.scale.value[0]).backward()

    def apply(self, loss: Tensor, step: int, indices: np.ndarray) -> Tensor:
        """Update the weights. loss: () of this rank's images.

        Returns () bool on the device: the step counted.

        Raises Failed after the third bad step in a row, with its number, learning rate and images.
        """
        # A frozen or unused parameter has none.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.scale is not None:
            torch._foreach_mul_(gradients, 1 / self.scale.value[0])
        # Before clipping: the norm of infinity would make NaN of every gradient.
        bad = self._bad(loss, gradients)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)

        # The fused kernels leave everything as it is where this is 1.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        # torch's fused kernels read found_inf themselves, so that no branch waits for the device.
        self.optimizer.step()
        for buffer, before in zip(self.buffers, self.before, strict=True):
            torch.where(bad > 0, before, buffer, out=buffer)
        if self.scale is not None:
            self.scale.update(bad)
        self._average(bad)
        # The host hears of it some steps later, without waiting.
        self._send(torch.stack([bad, loss.detach().float()]), step, indices)
        return bad == 0

    def _bad(self, loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """Return () float32 on the device: 1 where the loss or any gradient of any rank is not
        finite.
        """
        # The infinity norm is NaN or infinite exactly where some element is.
        largest = torch.stack(torch._foreach_norm(gradients, float("inf")))
        finite = torch.isfinite(loss.detach()) & torch.isfinite(largest).all()
        return self.ranks.largest((~finite).to(torch.float32))

    def _average(self, bad: Tensor) -> None:
        """Move the averaged weights and statistics towards the new ones, faster at first."""
        if self.averaged is None or self.decay is None:
            return

        # As in TensorFlow's ExponentialMovingAverage: a fresh average must not remember the initial
        # weights.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        share = (1 - decay) * (1 - bad)
        self.updates += 1

        with torch.no_grad():
            if bad.is_cuda:
                _average_all(list(_values(self.averaged)), list(_values(self.network)), share)
                return
            for own, new in zip(_values(self.averaged), _values(self.network), strict=True):
                if own.is_floating_point():
                    own.lerp_(new.detach(), share.to(own.dtype))
                else:
                    own.copy_(new)

    def _send(self, flags: Tensor, step: int, indices: np.ndarray) -> None:
        self.waiting.append(_Check(step, self.lr, indices, AsyncCopy(flags)))
        while self.waiting and (len(self.waiting) > READ_LAG or self.waiting[0].flags.arrived()):
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
        if self.in_a_row == self.max_bad:
            more = ", ..." if len(check.indices) > 8 else ""
            images = ", ".join(str(index) for index in check.indices[:8]) + more
            raise Failed(
                f"loss or gradients were not finite in {self.max_bad} steps in a row, the last of "
                "them step "
                f"{check.step + 1}, learning rate {check.lr:g}, images {images}; the weights are "
                "as before",
                limit="learning rate",
            )

    def state_dict(self) -> State:
        # A check that is still under way may yet count a bad step.
        self.settle()
        state = {
            "optimizer": self.optimizer.state_dict()["state"],
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }
        if self.averaged is not None:
            state |= {"averaged": self.averaged.state_dict(), "updates": self.updates}
        if self.scale is not None:
            state |= {"scale": self.scale.value, "good": self.scale.good}
        return state

    def misfit(self, state: State) -> str:
        """Return what of a state would not fit this network and optimizer, "" where all does.

        A fused kernel looks at no shape: it would read and write beyond a smaller tensor.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, stored in state["optimizer"].items():
            if not 0 <= number < len(parameters):
                return f"updater.optimizer has parameter {number} of {len(parameters)}"
            names = STATES[type(self.optimizer)]
            for name, tensor in stored.items():
                own = parameters[number]
                place = f"updater.optimizer: {name} of parameter {number}"
                if name not in names:
                    return f"{place} is not of this optimizer"
                wanted = torch.Size() if name == "step" else own.shape
                if tensor is not None and (tensor.shape, tensor.dtype) != (wanted, own.dtype):
                    return (
                        f"{place} is {[*tensor.shape]} {tensor.dtype}, not {[*wanted]} {own.dtype}"
                    )
            if "step" in names and stored.keys() != names:
                return f"updater.optimizer lacks a part of parameter {number}'s state"

        stored, own_average = state.get("averaged"), self.averaged
        if own_average is not None and stored is not None:
            for name, tensor in own_average.state_dict().items():
                if name not in stored or stored[name].shape != tensor.shape:
                    return f"updater.averaged: {name} is missing or of another shape"
                if stored[name].dtype != tensor.dtype:
                    return f"updater.averaged: {name} is of another type"
            if stored.keys() != own_average.state_dict().keys():
                return "updater.averaged holds tensors that the network has not"
        return ""

    def load_state_dict(self, state: State) -> None:
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

        # A run that had no average, or no scale, begins one.
        if self.averaged is not None:
            self.averaged.load_state_dict(state.get("averaged", self.network.state_dict()))
            self.updates = state.get("updates", 0)
        if self.scale is not None and "scale" in state:
            self.scale.value.copy_(state["scale"])
            self.scale.good.copy_(state["good"])


def _values(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _average_all(own: list[Tensor], new: list[Tensor], share: Tensor) -> None:
    """Move `own` towards `new` by a share that lies on the device: a few launches for all tensors.

    own + share (new - own), where a CPU's lerp takes another way for shares above 1/2: other bits.
    """
    floats = [index for index, value in enumerate(own) if value.is_floating_point()]
    others = [index for index, value in enumerate(own) if not value.is_floating_point()]
    change = torch._foreach_sub([new[i] for i in floats], [own[i] for i in floats])
    torch._foreach_mul_(change, share)
    torch._foreach_add_([own[i] for i in floats], change)
    if others:
        torch._foreach_copy_([own[i] for i in others], [new[i] for i in others])


def has_batch_norm(network: nn.Module) -> bool:
    """True where a batch norm takes its statistics from this process's images alone."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(not isinstance(m, (SyncBatchNorm, nn.SyncBatchNorm)) for m in norms)


def flatten_buffers(network: nn.Module) -> list[Tensor]:
    """Lay the network's buffers into one tensor a type, of which they become parts; return these.

    A step remembers and restores all of them: two launches instead of two for each of hundreds. The
    normalisation's mean and deviation, which never change, stay as they are.
    """
    places: dict[tuple[torch.dtype, torch.device], list[tuple[nn.Module, str, Tensor]]] = {}
    for path, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if path != "normalise":
                places.setdefault((buffer.dtype, buffer.device), []).append((module, name, buffer))

    flat = []
    for group in places.values():
        whole = torch.cat([buffer.reshape(-1) for _, _, buffer in group])
        parts = whole.split([buffer.numel() for _, _, buffer in group])
        for (module, name, buffer), part in zip(group, parts, strict=True):
            module._buffers[name] = part.view(buffer.shape)
        flat.append(whole)

    return flat


def make_optimizer(
    network: nn.Module,
    kind: str = "sgd",
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    backbone: float = 1.0,
    decay_all: bool = True,
) -> torch.optim.Optimizer:
    """Return SGD or AdamW, fused.

    backbone: the learning rate of all but the last layer, as a factor; decay_all: biases and batch
    norms decay too.
    """
    training = [p for p in network.parameters() if p.requires_grad]
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    # The last layer is new in fine-tuning: it learns at the full rate.
    last = set(layers[-1].parameters(recurse=False))

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}

    for parameter in training:
        factor = 1.0 if parameter in last else backbone
        decays = 1.0 if decay_all or parameter.dim() > 1 else 0.0
        groups.setdefault((factor, decays), []).append(parameter)

    parts = [{"params": group, "factor": f, "decays": d} for (f, d), group in groups.items()]

    if kind == "adamw":
        return torch.optim.AdamW(parts, lr=0.0, fused=True)
    optimizer = torch.optim.SGD(parts, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    # Momentum is made in advance: a first step that is skipped must not leave it unset.
    for parameter in training if momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
