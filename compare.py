"""Runs side by side: `python compare.py RUN RUN ... [--out compare.png]`.

A run is its folder, as training names it.

The table has the options that differ, the best test top-1 and its epoch, the time and the images a
second; the picture has the curves.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from base import process
from base.arguments import Parser, file_of
from base.errors import Refused, clear_errors
from base.files import read_text, refuse_target
from base.text import print_table, printable
from report.record import EpochRecord, Json

# Options that only say where a run lies.
LOCATIONS = {"expID", "expDir", "given"}


@dataclass(frozen=True)
class FinishedRun:
    """What a run's folder says of it."""

    options: Json
    history: list[EpochRecord]
    # What it was tested on: fingerprints of names and sizes, None in older runs.
    tested: tuple[str, ...] | None = None


def read(folder: Path) -> FinishedRun:
    """Read a run's options and log. Raises Refused."""
    try:
        stored = json.loads(read_text(folder / "options.json"))
        options, images = stored["options"], stored.get("images", {}).get("test")
        tested = (images["listing"], images["sizes"]) if images else None
        lines = read_text(folder / "log.jsonl").splitlines()
        history = [EpochRecord.from_json(json.loads(line)) for line in lines]
    except OSError as error:
        name = Path(error.filename or "").name
        raise Refused(f"{folder} is no run's folder: {name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        damaged = "options.json or log.jsonl cannot be read"
        raise Refused(f"{folder}: {damaged}: {error}") from None
    if not history:
        raise Refused(f"{folder} has finished no epoch yet: compare it later")
    return FinishedRun(options, history, tested)


def rows(runs: dict[str, FinishedRun]) -> list[list[str]]:
    """Return the table, its heading first."""
    # Options that all runs know: an older run lacks the newer ones.
    known = set.intersection(*(set(run.options) for run in runs.values())) - LOCATIONS
    differing = sorted(name for name in known if _differs(name, runs))
    metrics = ["epochs", "best top-1", "epoch", "last top-1", "hours", "images/s"]
    table = [["run", *differing, *metrics]]

    for name, run in runs.items():
        values = [printable(run.options.get(option, "-")) for option in differing]
        table.append([name, *values, *_metrics(run.history)])

    return table


def tested_apart(runs: dict[str, FinishedRun]) -> str:
    """Say which runs were tested on other images than the first; "" where none was."""
    first, *others = runs
    known = runs[first].tested
    apart = [name for name in others if known and runs[name].tested not in (None, known)]
    if not apart:
        return ""
    names = ", ".join(apart)
    return f"tested on other images than {first}: {names}; their accuracies do not compare"


def _differs(name: str, runs: dict[str, FinishedRun]) -> bool:
    return len({json.dumps(run.options.get(name)) for run in runs.values()}) > 1


def _metrics(history: list[EpochRecord]) -> list[str]:
    """Return a run's cells, in the order of the heading."""
    best = max(history, key=lambda record: -1.0 if record.test_top1 is None else record.test_top1)
    rates = sorted(record.images_per_second or 0 for record in history)
    hours = sum(record.seconds for record in history) / 3600
    accuracies = [_percent(best), str(best.epoch), _percent(history[-1])]
    return [str(len(history)), *accuracies, f"{hours:.2f}", f"{rates[len(rates) // 2]:.0f}"]


def _percent(record: EpochRecord) -> str:
    return "-" if record.test_top1 is None else f"{record.test_top1:.2f}"


def main(argv: list[str] | None = None) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="compare.py", description=__doc__, formatter_class=plain)
    about = "a run's folder: cache/mnist/alexnetbn"
    parser.add_argument("runs", nargs="+", type=file_of, metavar="RUN", help=about)
    picture = "picture (default: compare.png)"
    parser.add_argument("--out", type=file_of, default=Path("compare.png"), help=picture)
    arguments = parser.parse_args(argv)

    with clear_errors():
        runs = {printable(folder): read(folder) for folder in arguments.runs}
        refuse_target(arguments.out)
        for run in arguments.runs:
            if arguments.out.resolve().parent == run.resolve() and arguments.out.exists():
                raise Refused(f"{arguments.out} is a file of the run: name another picture")
        print_table(rows(runs))
        if apart := tested_apart(runs):
            print(apart)
        from report import pictures

        histories = {name: run.history for name, run in runs.items()}
        pictures.comparison(histories, arguments.out, named=True)
        print(f"curves: {arguments.out}")
        process.refuse_lost()


if __name__ == "__main__":
    process.begin()
    main(sys.argv[1:])
