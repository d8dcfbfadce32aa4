"""A run while it lives: its progress, when it saves, and when it stops."""

import contextlib
import errno
import itertools
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from base import archive
from base.archive import FORMAT, State
from base.errors import Failed, Refused
from base.text import listed
from loading.deaths import LostWorker, StopAwaited, end_workers
from loading.plan import Batch
from model import Network
from report.console import Console
from report.record import EpochRecord, Json
from report.report import Report
from report.tables import Tested
from run import schema
from run.checkpoint import Progress, Saved, Saver, room_left
from run.folder import Lock, clear_folder
from run.signals import Signals, Stopped
from run.watch import Watch
from training.metrics import Sums
from training.ranks import Ranks, together
from training.step import Step
from training.stopping import Stopping
from training.updater import Updater

# Options that say which images make up which batch.
BATCH_OPTIONS = {
    *("dataset", "data_dir", "dbcollection", "synthetic", "valShare", "fold"),
    *("balanced", "batchSize", "limit", "manualSeed"),
}
# Options that say what a checkpoint holds.
SHAPING = {
    *("optimizer", "momentum", "nesterov", "ema", "freeze", "backboneLR", "decayAll", "syncBN"),
}
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
    *(errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
    *(errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}


@dataclass(frozen=True)
class RunOptions:
    """epochs: of the whole run; snapshot: as the option; overwrite: remove the run that is in the
    folder.

    stopping: when it ends before its last epoch; resume_command: what a user types to resume this
    run; rescue, rescue_command: where it is saved
    if its folder is lost, and how it is resumed from there.
    """

    epochs: int
    snapshot: int = 5
    overwrite: bool = False
    stopping: Stopping = field(default_factory=Stopping)
    resume_command: str = ""
    rescue: Path = Path("rescued")
    rescue_command: str = ""


@dataclass
class Run:
    """What the training loop needs of its surroundings.

    environment: what the bits depend on, options aside; saved: the checkpoint that the run resumes
    from.
    """

    folder: Path
    step: Step
    options: RunOptions
    environment: State
    signals: Signals
    console: Console
    report: Report
    watch: Watch
    saver: Saver
    lock: Lock
    saved: Saved | None = None
    progress: Progress = field(default_factory=Progress)
    # Fingerprints of the images, as `datasets.changes` makes them.
    images: State = field(default_factory=dict)
    # What a checkpoint holds.
    parts: tuple[Network, Updater] | None = None
    # Top-1 and epoch of the best.pt that is on the disk.
    kept_best: tuple[float | None, int | None] = (None, None)
    # What nobody gave and the number of images decided: "batch", "epochs".
    chosen: list[str] = field(default_factory=list)
    # Why it ends before its last epoch, "" while it does not.
    ended: str = ""
    # Hears of each epoch, on the first rank.
    hook: Callable[[Json], None] = lambda record: None
    # Writes down in a folder what this run is.
    record: Callable[[Path], None] = lambda folder: None

    @property
    def ranks(self) -> Ranks:
        return self.step.ranks

    def resume(
        self,
        changed: dict[str, tuple[object, object]],
        network: Network,
        updater: Updater,
        *,
        images: Sequence[str] = (),
        relisted: bool = False,
        wanted: bool,
    ) -> Progress:
        """Take network and updater as what is saved, and fill them from the checkpoint, if there is
        one.

        changed: options that differ from the run's own, each with its value before and now; images:
        what changed among the images; relisted: other training images, or in another order; wanted:
        --continue was given.
        """
        # From here on a stop can save.
        self.parts = (network, updater)
        # Only now: whatever was wrong with this call has been refused, and the old run was still
        # there.
        if self.options.overwrite and self.ranks.first:
            clear_folder(self.folder)
        if self.saved is not None:
            self._fill(self.saved, changed, images, network, updater)
            if self.progress.batch and (relisted or changed.keys() & BATCH_OPTIONS):
                self.progress.batch, self.progress.sums = 0, None
                self.console.say("other batches than before: this epoch is restarted")
            self.saved = None
        elif wanted:
            self.console.say("nothing was saved here yet: starting from the beginning")

        progress = self.progress
        self.ended = self._reason_to_end()
        if progress.epoch >= self.options.epochs:
            finished = f"this run has finished its {progress.epoch} epochs"
            self.console.say(f"{finished}; raise --nEpochs to continue training")
        elif self.ended:
            finished = f"this run has ended after {progress.epoch} epochs, {self.ended}"
            self.console.say(f"{finished}; give another value to continue training")
        # Largest and smallest are compared in one exchange: the largest of -step is the smallest
        # step.
        if self.ranks.agree(progress.step, -progress.step) != [progress.step, -progress.step]:
            found = f"the ranks found other checkpoints in {self.folder}"
            raise Refused(f"{found}: all machines must share it")

        if self.ranks.first:
            self.record(self.folder)
        self.console.restore(progress.history, progress.epoch)
        self.report.open(progress.step)
        self.signals.armed = True
        return progress

    def _fill(
        self,
        saved: Saved,
        changed: dict[str, tuple[object, object]],
        images: Sequence[str],
        network: Network,
        updater: Updater,
    ) -> None:
        """Continue from a checkpoint. Says how exact that is. Raises Refused for one of others."""
        wrong = schema.misfit(network.state_dict(), saved.parts["network"])
        if wrong := wrong or updater.misfit(saved.parts["updater"]):
            other = f"{saved.path} does not fit this run: {wrong}"
            if shaping := sorted(SHAPING & changed.keys()):
                names = listed([f"--{name}" for name in shaping])
                raise Refused(f"{other}: leave {names} as it was, or name another --expID")
            raise Refused(other, limit="checkpoints")
        network.load_state_dict(saved.parts["network"])
        updater.load_state_dict(saved.parts["updater"])
        self.progress = saved.progress
        if (self.folder / "best.pt").exists():
            self.kept_best = saved.progress.best, saved.progress.best_epoch
        # The interval counts from the checkpoint, not from the start of this process.
        self.saver.interval.reset(self.progress.step)
        breaks = [f"{name} {before} became {now}" for name, (before, now) in changed.items()]
        for name, before in saved.settings.items():
            now = self.environment.get(name)
            if now != before:
                breaks.append(f"{name} {before} became {now}")
        breaks += images
        if not saved.images:
            breaks.append("an older version's checkpoint, which knows nothing of its images")
        if self.step.device.type != "cpu" and not torch.are_deterministic_algorithms_enabled():
            breaks.append("a GPU without --deterministic")
        exact = "bit-for-bit identical to an uninterrupted run"
        if breaks:
            exact = f"not bit for bit: {', '.join(breaks)}"
        position = f"epoch {self.progress.epoch + 1}, step {self.progress.step}"
        self.console.say(f"resuming from {saved.path}, {position}, {exact}")

    def batches(
        self, batches: Iterable[Batch], sums: Sums, title: str, total: int
    ) -> Iterator[Batch]:
        """Yield the batches of a pass, timed and shown.

        Saves what is trained, `sums`, if a worker is lost.

        title, total: what the progress bar says, and its images.
        """
        try:
            yield from self.watch.timed(batches, title, total)
        except StopAwaited:
            self.check_stop(sums)
        except LostWorker as error:
            # Several ranks cannot agree on a step any more: they resume from the last interval.
            if self.ranks.world > 1 or self.parts is None:
                raise
            self.save(sums)
            self.saver.finish()
            done = f"step {self.progress.step} is saved"
            command = self.options.resume_command
            raise Failed(f"{error}; {done}, resume with: {command}") from None

    def restored_sums(self) -> Sums:
        """Return the sums of the part of this epoch that is done."""
        if self.progress.sums is None:
            return Sums(self.step.device)
        return Sums.from_state(self.progress.sums, self.step.device, self.ranks)

    def share_done(self, batches: int, before: int = 0) -> float:
        """Return the share of the run that was done `before` steps ago. batches: an epoch has."""
        position = self.progress.epoch + (self.progress.batch - before) / batches
        return position / self.options.epochs

    def show_step(self, sums: Sums, images: Tensor, labels: Tensor, batches: int) -> None:
        """Show the step that was just computed."""
        assert self.parts is not None
        if self.progress.step == 0:
            self.report.first_batch(images, labels)
        lr, epochs = self.parts[1].lr, self.options.epochs
        self.watch.step(self.progress, sums, lr, len(images), batches, epochs)

    def after_step(self, sums: Sums) -> None:
        """Count the step; save when it is time; stop when asked to."""
        self.progress.batch += 1
        self.progress.step += 1
        self.saver.report()
        # Clocks differ between machines: the first rank's decides for all.
        due = self.ranks.first and self.saver.interval.due(self.progress.step)
        due = due and not self.saver.busy
        # All ranks stop and save at the same step: one small exchange on the host, the device is
        # not asked.
        stop, save = self.ranks.agree(self.signals.stop or 0, self.signals.save or due)
        self.signals.save = False
        if save:
            self.save(sums)
        self._stop_if(stop, sums)

    def check_stop(self, sums: Sums) -> None:
        """Save and leave, if a signal asked any rank for it."""
        self._stop_if(self.ranks.agree(self.signals.stop or 0)[0], sums)

    def _stop_if(self, number: int, sums: Sums) -> None:
        """Save and leave, if `number` is a signal's."""
        if not number:
            return
        self.save(sums)
        self.saver.finish()
        if self.ranks.first:
            name, command = signal.Signals(number).name, self.options.resume_command
            message = (
                f"stopped by {name} at step {self.progress.step}, saved; resume with: {command}"
            )
            print(message, file=sys.stderr)

        raise Stopped(128 + number)

    def save(self, sums: Sums | None, also: Callable[[State], None] | None = None) -> None:
        """Write a checkpoint in the background.

        sums: of the part of the epoch that is done, None after an epoch.
        """
        assert self.parts is not None
        # Collecting sums takes all ranks, so it comes before the others leave.
        self.progress.sums = None if sums is None else sums.state_dict(self.ranks)
        self.saver.interval.reset(self.progress.step)
        if not self.ranks.first:
            return
        self._refuse_lost_folder()
        self.saver.save(self.progress.step, self._state(), also)

    def _state(self) -> State:
        """Return what a checkpoint holds."""
        assert self.parts is not None
        network, updater = self.parts
        return {
            "network": network.state_dict(),
            "updater": updater.state_dict(),
            "format": FORMAT,
            "model": network.spec.to_plain(),
            "settings": self.environment,
            "images": self.images,
            "progress": self.progress.to_plain(),
        }

    def _refuse_lost_folder(self) -> None:
        """Save elsewhere and leave, where the folder is gone, or another run may have it.

        Raises Failed.
        """
        if not self.lock.is_lost():
            return
        step = self.progress.step
        elsewhere = self._place_beside()
        rescuer = Saver(elsewhere / "checkpoints")
        rescuer.save(step, self._state())
        rescuer.finish()
        self.record(elsewhere)
        # What was being written went with the folder.
        self.saver.problem = None
        lost = f"{self.folder} was removed, moved or taken by another run"
        command = self.options.rescue_command.replace(self.options.rescue.name, elsewhere.name)
        raise Failed(f"{lost}: step {step} is saved in {elsewhere}; resume with: {command}")

    def _place_beside(self) -> Path:
        """Make a folder that no run has had."""
        first = self.options.rescue
        for number in itertools.count(1):
            place = first if number == 1 else first.with_name(f"{first.name}-{number}")
            with contextlib.suppress(FileExistsError):
                place.mkdir(parents=True)
                return place
        raise AssertionError

    def finish_epoch(self, sums: Sums, record: EpochRecord, tested: Tested) -> None:
        """Log an epoch and save it, with its snapshot and the best weights so far."""
        assert self.parts is not None
        progress, epoch = self.progress, record.epoch
        # Where the last best.pt could not be written, the one before it is still to be beaten.
        self.saver.wait()
        if self.ranks.first:
            progress.best, progress.best_epoch = self.kept_best
        better = self._is_better(record)
        if better:
            progress.best, progress.best_epoch = record.test_top1, epoch
        progress.history.append(record)
        progress.epoch += 1
        progress.batch = 0
        # A rank holds its part of each step's loss; together they are the batch's.
        losses = self.ranks.sum(sums.step_losses()).tolist()
        self.ended = self._reason_to_end()
        snapshot = self._snapshot_due(epoch)
        # Weights are written by the same thread as the checkpoint and before it: a checkpoint that
        # names a best epoch has its file.
        names = ["best.pt"] if better else []
        if snapshot:
            names.append("model.pt" if self.options.snapshot < 0 else f"model_{epoch}.pt")
        self.save(None, lambda state: self._write_weights(names, state, record))

        self.console.step_losses(epoch, progress.step, losses)
        self.console.show_epoch(record, progress.history)
        self.hook(record.to_json())
        self.watch.advise()
        last = progress.epoch >= self.options.epochs or bool(self.ended)
        network = self.parts[0]
        self.report.epoch(
            progress.history, tested, losses, network, best=better, snapshot=snapshot, last=last
        )

    def _is_better(self, record: EpochRecord) -> bool:
        """True where the epoch's weights are the best so far; never where the test loss is not
        finite.
        """
        top1, loss = record.test_top1, record.test_loss
        if top1 is None or loss is None or abs(loss) >= float("inf"):
            return False
        return self.progress.best is None or top1 > self.progress.best

    def _snapshot_due(self, epoch: int) -> bool:
        every = abs(self.options.snapshot)
        last = epoch == self.options.epochs or bool(self.ended)
        return last or (every != 0 and epoch % every == 0)

    def _reason_to_end(self) -> str:
        """Return why the run is over before its last epoch, on all ranks alike."""
        if self.progress.epoch >= self.options.epochs:
            return ""
        reason = self.options.stopping.reason(self.progress.history)
        # Clocks differ between ranks: the first one's decides.
        decided = self.ranks.agree(int(bool(reason)) if self.ranks.first else 0)[0]
        return (reason or "as the first rank decided") if decided else ""

    def _write_weights(self, names: list[str], state: State, record: EpochRecord) -> None:
        network = state["updater"].get("averaged", state["network"])
        # The averaged weights are what was tested, so they are what is kept.
        weights = {"format": FORMAT, "model": state["model"], "network": network}
        for name in names:
            archive.write(self.folder / name, weights | {"record": record.to_json()})
        if "best.pt" in names:
            self.kept_best = record.test_top1, record.epoch

    def summary(self) -> None:
        """Say how the run ended, once everything is on the disk. Raises Failed where it is not."""
        self.saver.finish()
        progress = self.progress
        best = "no epoch could be tested"
        if progress.best is not None:
            top1 = f"best test top-1 {progress.best:.2f} % in epoch {progress.best_epoch}"
            best = f"{top1}: {self.folder / 'best.pt'}"
        if self.ended:
            self.console.say(f"ended after {progress.epoch} epochs: {self.ended}")
        else:
            best = f"finished: {best}"
        peak = max((record.peak_memory_bytes for record in progress.history), default=0)
        memory = f"at most {peak / 2**20:.0f} MiB were in use"
        self.console.say(f"{best}; {memory}")


@contextlib.contextmanager
def ending(run: Run) -> Iterator[None]:
    """Turn a disk that cannot be written to into one line; workers do not outlive the run."""
    command = run.options.resume_command
    try:
        with together(run.ranks, command):
            yield
        run.saver.finish()
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where, left = error.filename or run.folder, room_left(run.folder)
        # What is read lies elsewhere, and nothing is wrong with what was saved.
        if not Path(where).is_relative_to(run.folder):
            raise Failed(f"{where}: {error.strerror}; resume with: {command}") from None
        raise Failed(
            f"cannot write {where}: {error.strerror}; {left}; "
            f"{run.saver.what_is_left()}; resume with: {command}"
        ) from None
    finally:
        run.saver.join()
        run.report.close()
        end_workers()
