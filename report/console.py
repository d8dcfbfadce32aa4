"""What a run shows and writes of itself: console, log.jsonl, each step's loss."""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from base.files import whole_file, write_json
from base.text import printable

COLUMNS = ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5", "lr", "seconds", "images_per_second")


class Logger:
    """Writes into the run's folder. A rank that is not the first has a quiet one."""

    def __init__(self, folder: Path, *, quiet: bool = False, verbose: bool = False) -> None:
        self.folder, self.quiet, self.verbose = folder, quiet, verbose
        self.bars = not (quiet or verbose) and sys.stderr.isatty()
        self.rows = 0

    def say(self, line: str) -> None:
        if self.quiet:
            return
        try:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads on; the training is worth more
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator[Any]:
        """Show how far a pass is, on a terminal."""
        with tqdm(total=total, desc=title, unit=" images", leave=False, disable=not self.bars, dynamic_ncols=True) as bar:
            self.current = bar
            yield bar

    def beside_bar(self, text: str) -> None:
        """Show text at the end of the bar; it is drawn with the bar's next move."""
        if self.bars:
            self.current.set_postfix_str(text, refresh=False)

    def table(self, path: Path, heading: list[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write a CSV file, names escaped."""
        if not self.quiet:
            with whole_file(path) as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([heading, *([printable(cell) for cell in row] for row in rows)])

    def restore(self, history: list[dict[str, Any]], epoch: int) -> None:
        """Make the files those of a run that has finished `epoch` epochs."""
        if self.quiet:
            return
        self._write_log(history)
        losses = self.folder / "full_train.log"
        lines = losses.read_text().splitlines(keepends=True) if losses.exists() else []
        kept = [
            line
            for line in lines
            if line.endswith("\n") and (number := line.split("\t")[0]).isdecimal() and int(number) <= epoch
        ]
        with whole_file(losses) as file:
            file.writelines(kept)

    def step_losses(self, epoch: int, step: int, losses: list[float]) -> None:
        """Append an epoch's losses to full_train.log: epoch, step (from 1), loss. step: that of the last one."""
        if self.quiet:
            return
        with open(self.folder / "full_train.log", "a") as file:
            for place, loss in enumerate(losses, step - len(losses) + 1):
                file.write(f"{epoch}\t{place}\t{loss!r}\n")
            file.flush()
            os.fsync(file.fileno())

    def record(self, record: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Write an epoch's line and show it."""
        if self.quiet:
            return
        self._write_log(history)
        if self.rows == 0:
            self.say("  ".join(f"{name:>11}" for name in COLUMNS).replace("images_per_second", "images/s"))
        self.rows += 1
        self.say("  ".join(f"{_shown(record.get(name)):>11}" for name in COLUMNS))

    def figures(self, values: dict[str, Any]) -> None:
        """Say some figures, and write them to test.json."""
        self.say(", ".join(f"{name} {_shown(value)}" for name, value in values.items()))
        write_json(self.folder / "test.json", values)

    def _write_log(self, history: list[dict[str, Any]]) -> None:
        with whole_file(self.folder / "log.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in history)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1
        else f"{value:.2f}"
        if isinstance(value, float)
        else str(value)
    )
