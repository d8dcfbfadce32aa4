"""NaN and infinity in activations, loss and gradients: weights, momentum and running statistics
stay as they were.
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import Child, checkpoint, options, run_folder, scratch, script
from torch import nn

import model
from training import metrics, ranks, schedule
from training.updater import Updater, make_optimizer

PLACES = ("activation", "loss", "gradient")
VALUES = (float("nan"), float("inf"), float("-inf"))


def copy(network: nn.Module, updater: Updater) -> list[torch.Tensor]:
    """Return copies of all that a step changes."""
    momentum = [value for state in updater.optimizer.state.values() for value in state.values()]
    more = [] if updater.averaged is None else list(updater.averaged.state_dict().values())
    return [
        tensor.detach().clone() for tensor in [*network.state_dict().values(), *momentum, *more]
    ]


def step(
    network: nn.Module, updater: Updater, number: int, place: str | None, value: float
) -> torch.Tensor:
    """Do one training step with `value` put into one place of it; return whether it counted."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (8,), generator=generator)
    hooks = []
    if place == "activation":
        layer = network.get_submodule("body.0")
        hooks.append(
            layer.register_forward_hook(
                lambda _, __, output: output.index_fill(0, torch.tensor([3]), value)
            )
        )
    if place == "gradient":
        weight = next(network.parameters())
        hooks.append(
            weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), value))
        )
    updater.begin(number)
    loss = metrics.Criterion()(network(images, heads=True), labels) / 8
    if place == "loss":
        loss = loss * value
    updater.backward(loss)
    counted = updater.apply(loss, number, generator.initial_seed() + torch.arange(8).numpy())
    for hook in hooks:
        hook.remove()
    return counted


def run(trials: int = 180, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    unchanged = skipped = moved = 0
    network = model.create("tiny", 4, 16)
    network.train()
    planned = schedule.make_schedule(lr=0.05, weight_decay=5e-4, first=0)
    updater = Updater(network, make_optimizer(network), planned, ranks.Ranks(), average=0.9)
    for trial in range(trials):
        poisoned = trial == 0 or trial % 2 == 1 or pick.random() < 0.3
        place = PLACES[trial % len(PLACES)] if poisoned and updater.in_a_row < 2 else None
        before = copy(network, updater)
        counted = bool(step(network, updater, trial, place, pick.choice(VALUES)))
        same = all(torch.equal(a, b) for a, b in zip(before, copy(network, updater), strict=True))
        skipped += place is not None
        unchanged += place is not None and same and not counted
        moved += place is None and not same and counted
    return {
        "trials": trials,
        "bad_steps": skipped,
        "unchanged_bitwise": unchanged,
        "good_steps": moved,
        **third_in_a_row(),
    }


def third_in_a_row() -> dict[str, Any]:
    """Run main.py with every loss from step 7 on not a number."""

    def before() -> None:
        loss_of = metrics.Criterion.__call__
        seen = [0]

        def poisoned(self: metrics.Criterion, heads: Any, targets: Any) -> torch.Tensor:
            seen[0] += 1
            return loss_of(self, heads, targets) * (float("nan") if seen[0] > 6 else 1)

        metrics.Criterion.__call__ = poisoned

    with scratch() as base:
        child = Child(options(base, "--saveEvery", "1"), before)
        status = child.wait()
        said = child.text()
        found = checkpoint.newest(run_folder(base) / "checkpoints")
        assert found is not None
        finite = checkpoint.non_finite(found.parts) is None
    told = all(word in said for word in ("step 9", "learning rate", "images"))
    return {"third_in_a_row": {"status": status, "told": told, "checkpoint_finite": finite}}


if __name__ == "__main__":
    script("10 not finite", run, 180)
