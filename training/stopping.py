"""When a run ends before its last epoch: no better results, or no time left. Nothing here imports
torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from base.arguments import is_whole

METRICS = ("top1", "loss")


class Epoch(Protocol):
    """What of an epoch's record is looked at."""

    @property
    def test_top1(self) -> float | None: ...
    @property
    def test_loss(self) -> float | None: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Stopping:
    """patience: epochs without a better test metric; metric: top1 or loss; hours: of all epochs.

    All of it follows from the epochs' records, which a checkpoint holds: by patience a run that is
    resumed ends where one that was never stopped does. Hours are a clock's.
    """

    patience: int | None = None
    metric: str = "top1"
    hours: float | None = None

    @classmethod
    def parse(cls, patience: str | None, hours: float | None) -> "Stopping":
        """Read `10` or `loss:10`. Raises ValueError."""
        if patience is None:
            return cls(hours=hours)
        metric, _, count = patience.rpartition(":")
        if (metric or "top1") not in METRICS or not is_whole(count) or int(count) < 1:
            form = "neither epochs, for example 10, nor loss:10"
            raise ValueError(f"'{patience}' is {form}")
        return cls(int(count), metric or "top1", hours)

    def reason(self, history: Sequence[Epoch]) -> str:
        """Return why a run with these epochs is over, "" where it is not."""
        if self.patience is not None:
            epochs = len(history) - self._best(history)
            if epochs >= self.patience:
                name = {"top1": "higher test top-1", "loss": "lower test loss"}[self.metric]
                return f"no {name} for {epochs} epochs (--patience)"
        if self.hours is not None and history:
            took = sum(record.seconds for record in history)
            # The next epoch is taken to last as long as the last one.
            if took + history[-1].seconds > 3600 * self.hours:
                return f"another epoch would end after {self.hours:g} hours (--hours)"
        return ""

    def _best(self, history: Sequence[Epoch]) -> int:
        """Return the number of the best epoch, from 1; 0 where none could be tested."""
        best, epoch = float("-inf"), 0
        for number, record in enumerate(history, 1):
            value = record.test_top1 if self.metric == "top1" else record.test_loss
            if value is None:
                continue
            value = value if self.metric == "top1" else -value
            if value > best:
                best, epoch = value, number
        return epoch
