"""One rank of a run in float64 or float32 without dropout; rank 0 writes the first step's gradients
and the last weights.
"""

import sys
import types

import rig
import torch
from torch import nn

import configs
import main
from models import NETWORKS, Entry
from training.updater import Updater


def plain(classes: int, size: int, stem: str) -> nn.Module:
    """Batch norm after a convolution and after a linear layer, and no dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, classes),
    )


def run(out: str, kind: str, arguments: list[str]) -> None:
    sys.modules["models.plain"] = types.ModuleType("models.plain")
    sys.modules["models.plain"].plain = plain  # type: ignore[attr-defined]
    NETWORKS["tiny"] = Entry("plain:plain", 8, "for the comparison of ranks")
    found = {}
    made, apply = configs.make_network, Updater.apply
    configs.make_network = lambda *given: made(*given).to(getattr(torch, kind))

    def noted(self: Updater, loss: torch.Tensor, step: int, *more: object) -> torch.Tensor:
        if step == 0:
            found["gradients"] = [parameter.grad.clone() for parameter in self.parameters]
        found["network"] = self.network
        return apply(self, loss, step, *more)  # type: ignore[arg-type]

    Updater.apply = noted  # type: ignore[assignment,method-assign]
    main.main(arguments)
    if "network" in found:
        found["network"] = [value.clone() for value in found["network"].state_dict().values()]
        torch.save(found, f"{out}.{rig.os.environ.get('RANK', '0')}")


if __name__ == "__main__":
    run(*sys.argv[1:3], sys.argv[3:])
