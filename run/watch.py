"""A pass as it is seen: its clock, the bar, a line a step, bad images, and advice about slow
reading.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from base.arguments import core_count
from base.files import write_rows
from base.text import printable
from loading.plan import Batch
from loading.workers import BadImage
from report.console import Console
from run.checkpoint import Progress
from training.metrics import Sums
from utils import AsyncCopy

# Share of a pass's time that may wait for data before it is said.
LIMITING = 0.1
# Seconds of a pass from which on that is judged: before, it is the start of the workers that is
# waited for.
JUDGED_AFTER = 30.0


@dataclass
class Clock:
    """Seconds of a pass: waiting for data, and all the rest; images: over all ranks; first: of the
    wait, what the first batch took, for which workers have to start; last: what the last one took;
    given: when it came.
    """

    data: float = 0.0
    first: float = 0.0
    compute: float = 0.0
    images: int = 0
    last: float = 0.0
    given: float = 0.0

    @property
    def seconds(self) -> float:
        return self.data + self.compute


class Watch:
    """Shows passes while they last.

    reads_files: images are read from files while the network trains.
    """

    def __init__(self, console: Console, folder: Path, device: torch.device) -> None:
        self.console = console
        self.folder = folder
        self.device = device
        self.clock = Clock()
        # Of the last pass of training.
        self.training = Clock()
        self.reads_files = False
        # What decoding once would take, where it fits.
        self.keeping = ""
        self.advised = False

        # Paths of images that were left out, and why.
        self.bad: dict[str, str] = {}

        # Sums on their way to the progress bar.
        self.pending: AsyncCopy | None = None

    def timed(self, batches: Iterable[Batch], title: str, total: int) -> Iterator[Batch]:
        """Yield batches with a progress bar of `total` images; keep time."""
        clock = self.clock = Clock()
        with self.console.bar(title, total) as bar:
            last = time.perf_counter()
            for batch in batches:
                now = time.perf_counter()
                clock.last = now - last
                clock.data += clock.last
                clock.first = clock.first or clock.last
                clock.images += batch.total
                clock.given = now
                yield batch
                last = time.perf_counter()
                clock.compute += last - now
                bar.update(batch.total)

            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            clock.compute += time.perf_counter() - last

    def step(
        self, progress: Progress, sums: Sums, lr: float, size: int, batches: int, epochs: int
    ) -> None:
        """Say a line of this step, if lines are wanted; else put loss and top-1, as far as known,
        beside the bar.

        size: images of this rank's batch; batches, epochs: how many an epoch, a run has.
        """
        if not self.console.verbose:
            self.sums_beside_bar(sums)
            return

        # This waits for the device: that is what lines cost.
        loss, top1, top5, count = sums.values.tolist()
        errors = "skipped"
        if count:
            wrong1, wrong5 = 100 - 100 * top1 / count, 100 - 100 * top5 / count
            errors = f"top-1 err {wrong1:.2f} %; top-5 err {wrong5:.2f} %"
            if "test_top5" in self.console.hidden:
                errors = f"top-1 err {wrong1:.2f} %"
        # Of this step, since its batch was there.
        computed = time.perf_counter() - self.clock.given

        epoch, batch = progress.epoch + 1, progress.batch + 1
        self.console.say(
            f"epoch[{epoch}/{epochs}][{batch}/{batches}][batch={size}] - epoch so far: loss "
            f"{loss / max(count, 1):.4f}; {errors}; this step: lr {lr:g}; "
            f"data {self.clock.last:.3f} s; forward-backward {computed:.3f} s"
        )

    def sums_beside_bar(self, sums: Sums) -> None:
        """Put loss and top-1 so far beside the bar, once they have come from the device: nothing
        waits for them.
        """
        if not self.console.bars:
            return
        if self.pending is not None and self.pending.arrived():
            loss, top1, _, count = self.pending.take()
            count = max(count, 1)
            self.console.beside_bar(f"loss {loss / count:.3f}, top-1 {100 * top1 / count:.2f} %")
            self.pending = None
        if self.pending is None:
            self.pending = AsyncCopy(sums.values.clone())

    def left_out(self, pass_name: str, bad: dict[int, BadImage]) -> int | None:
        """List the images that a pass left out, and say how many; return that, None where there are
        none.
        """
        if not bad:
            return None
        self.bad |= {image.path: image.reason for image in bad.values()}
        path = self.folder / "bad_images.csv"
        if not self.console.quiet:
            rows = ([printable(cell) for cell in row] for row in sorted(self.bad.items()))
            write_rows(path, ["path", "reason"], rows)

        self.console.say(f"{len(bad)} bad images were left out of {pass_name}: {path}")
        return len(bad)

    def advise(self) -> None:
        """Say once that reading files limits the run, and what to change."""
        data = self.training.data - self.training.first
        whole = self.training.seconds - self.training.first
        if self.advised or not self.reads_files or whole < JUDGED_AFTER or data < LIMITING * whole:
            return

        self.advised = True
        cores = core_count()
        keeping = f"{self.keeping}; or " if self.keeping else ""
        self.console.say(
            f"reading files limits this run, {data / whole:.0%} of its time waits for them: "
            f"{keeping}raise --nThreads (there "
            f"are {cores} cores), read smaller files (python prepare.py shrink), or use a faster "
            "disk; "
            "python benchmark/imagenet.py --tune --data_dir DIR finds the best number"
        )
