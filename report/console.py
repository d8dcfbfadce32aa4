"""What a run says and writes as text: console, log.jsonl, each step's loss."""

import contextlib
import dataclasses
import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from base.files import is_special, read_text, set_aside, whole_file, write_json, write_rows
from base.text import printable
from report.record import EpochRecord, TestMetrics

# Columns of the table on the console: a metric's name, and its heading where that is another.
COLUMNS = {
    "epoch": "epoch",
    "train_loss": "train_loss",
    "train_top1": "train_top1",
    "test_loss": "test_loss",
    "test_top1": "test_top1",
    "test_top5": "test_top5",
    "lr": "lr",
    "seconds": "seconds",
    "images_per_second": "images/s",
}


class Console:
    """Writes to the terminal and into the run's folder.

    A rank that is not the first has a quiet one.
    """

    def __init__(self, folder: Path, *, quiet: bool = False, verbose: bool = False) -> None:
        # Of this process alone: a fork that is killed while it holds tqdm's shared lock would stop
        # every bar of ours for ever.
        tqdm.set_lock(threading.RLock())
        # No thread to look after the bars, which may be one more than this user may start.
        tqdm.monitor_interval = 0
        self.folder = folder
        self.quiet = quiet
        self.verbose = verbose
        self.bars = not (quiet or verbose) and sys.stderr.isatty()
        self.current: tqdm[Any] | None = None
        # Whether the table's heading was said.
        self.headed = False
        # Metrics that say nothing here: top-5 of few classes.
        self.hidden: set[str] = set()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.quiet:
            return
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator[Any]:
        """Show how far a pass is, on a terminal."""
        settings: dict[str, Any] = {"unit": " images", "leave": False, "dynamic_ncols": True}
        with tqdm(total=total, desc=title, disable=not self.bars, **settings) as bar:
            self.current = bar
            yield bar

    def beside_bar(self, text: str) -> None:
        """Show text at the end of the bar; it is drawn with the bar's next move."""
        if self.bars and self.current is not None:
            self.current.set_postfix_str(text, refresh=False)

    def restore(self, history: list[EpochRecord], epoch: int) -> None:
        """Make the files those of a run that has finished `epoch` epochs."""
        if self.quiet:
            return
        self._write_log(history)
        losses = self.folder / "full_train.log"
        lines = _whole_lines(losses)
        with whole_file(losses) as file:
            file.writelines(line for line in lines if _is_of_epoch(line, epoch))

    def step_losses(self, epoch: int, step: int, losses: list[float]) -> None:
        """Append an epoch's losses to full_train.log: epoch, step (from 1), loss.

        step: that of the last one.
        """
        if self.quiet:
            return
        path = self.folder / "full_train.log"
        if is_special(path):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(path, "a") as file:
            for number, loss in enumerate(losses, step - len(losses) + 1):
                file.write(f"{epoch}\t{number}\t{loss!r}\n")
            file.flush()
            os.fsync(file.fileno())

    def show_epoch(self, record: EpochRecord, history: list[EpochRecord]) -> None:
        """Write an epoch's line and show it."""
        if self.quiet:
            return
        self._write_log(history)
        shown = {name: heading for name, heading in COLUMNS.items() if name not in self.hidden}
        if not self.headed:
            self.say("  ".join(f"{heading:>11}" for heading in shown.values()))
            self.headed = True
        self.say("  ".join(f"{_short(getattr(record, name)):>11}" for name in shown))

    def show_test(self, metrics: TestMetrics) -> None:
        """Say the metrics of a test alone, and write them to test.json."""
        values = metrics.to_json()
        shown = {name: value for name, value in values.items() if name not in self.hidden}
        self.say(", ".join(f"{name} {_short(value)}" for name, value in shown.items()))
        if not self.quiet:
            write_json(self.folder / "test.json", values)

    def _write_log(self, history: list[EpochRecord]) -> None:
        records = [record.to_json() for record in history]
        with whole_file(self.folder / "log.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        # The same as a table, for whoever opens it in a spreadsheet.
        names = [field.name for field in dataclasses.fields(EpochRecord)]
        rows = [[record.get(name) for name in names] for record in records]
        cells = [["" if value is None else str(value) for value in row] for row in rows]
        write_rows(self.folder / "log.csv", names, cells)


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a log; one that cannot be read is set aside, for whoever wants it."""
    try:
        return read_text(path).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except ValueError as error:
        aside = set_aside(path)
        told = f"{path} is damaged ({printable(error)}): set aside as {aside.name}"
        print(told, file=sys.stderr, flush=True)
        return []


def _is_of_epoch(line: str, last: int) -> bool:
    """True for a whole line of full_train.log of an epoch up to `last`."""
    number = line.split("\t")[0]
    return line.endswith("\n") and number.isdecimal() and int(number) <= last


def _short(value: float | int | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)
