"""What one optimizer step needs to know of its surroundings."""

from dataclasses import dataclass, field

import torch

import utils
from training.ranks import Ranks


@dataclass(frozen=True)
class Step:
    """device, and ranks, who share a batch; seed: of the run; accumulate: parts that a batch is
    trained in.

    precision: autocast's type, None for float32 throughout; gpus: of this process.
    """

    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0
    accumulate: int = 1
    precision: torch.dtype | None = None
    gpus: int = 1

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        enabled = self.precision is not None
        return torch.autocast(self.device.type, self.precision, enabled=enabled)

    def reseed(self, step: int, part: int) -> None:
        """Seed dropout for one part of a step: whatever was drawn before, and wherever a run was
        stopped.
        """
        parts = (self.seed, step, part, self.ranks.rank)
        utils.reseed(self.device, *parts, gpus=self.gpus)
