"""Run with 0, 1, 2 and 4 workers, each start method, other prefetching, and switched on resume:
same samples, same pixels.
"""

import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import Child, fingerprint, image_options, make_images, scratch, script

import data

WAYS = [(workers, "fork", prefetch) for workers in (0, 1, 2, 4) for prefetch in (1, 2, 4)]
WAYS += [(2, "forkserver", 2), (2, "spawn", 2)]


def recording(log: Path, prefetch: int) -> Any:
    """Return what a child does before its run: write down each training sample and a hash of its
    pixels.
    """

    def before() -> None:
        make, epoch_of = data.DataLoader.__init__, data.FileLoader.epoch

        def init(self: Any, *positional: Any, **named: Any) -> None:
            make(
                self,
                *positional,
                **named | ({"prefetch_factor": prefetch} if named.get("num_workers") else {}),
            )

        def recorded(self: Any, epoch: int, start: int = 0) -> Iterator[Any]:
            with log.open("a") as file:
                for batch in epoch_of(self, epoch, start):
                    for index, image in zip(batch.indices, batch.images, strict=True):
                        digest = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
                        file.write(f"{self.plan.shuffle} {epoch} {index} {digest}\n")
                    yield batch

        data.DataLoader.__init__ = init  # type: ignore[method-assign]
        data.FileLoader.epoch = recorded  # type: ignore[method-assign]

    return before


def samples(log: Path) -> list[str]:
    """Return the training samples in their order; a test pass that was stopped is done again, so it
    is not compared.
    """
    return [line for line in log.read_text().splitlines() if line.startswith("True")]


def run(trials: int = len(WAYS), seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    equal = switched = 0
    with scratch() as base:
        images = make_images(base / "images")
        expected = None
        for trial in range(trials):
            workers, method, prefetch = WAYS[trial % len(WAYS)]
            folder, log = base / f"trial{trial}", base / f"log{trial}"
            arguments = image_options(
                folder,
                images,
                "--augment",
                "crop,flip,jitter:0.4",
                "--continue",
                "--startMethod",
                method,
            )
            if trial:
                first = Child(
                    [*arguments, "--nThreads", str(pick.choice((0, 1, 2)))], recording(log, 2)
                )
                while first.alive() and first.steps < 4:
                    pass
                first.kill(15)
                switched += first.wait() == 143
            last = Child([*arguments, "--nThreads", str(workers)], recording(log, prefetch))
            if last.wait() != 0:
                raise RuntimeError(last.text())
            found = samples(log), fingerprint(folder)
            expected = expected or found
            equal += found == expected
    return {"trials": trials, "equal": equal, "stopped_and_switched": switched}


if __name__ == "__main__":
    script("2 workers", run, len(WAYS))
