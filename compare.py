"""Runs side by side: `python compare.py RUN RUN ... [--out compare.png]`.

A run is its folder, as training names it; `--sweep FOLDER` takes all runs below a folder and ranks
them, the best test top-1 first.

The table has the options that differ, the best test top-1 and its epoch, the time and the images a
second; the picture has the curves, over epochs, steps or seconds.
"""

from base import process

if __name__ == "__main__":
    # Before anything else: a signal ends even the imports below in one line.
    process.begin()

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from base.arguments import Parser, file_of
from base.errors import Refused, clear_errors
from base.files import is_our_picture, read_text, refuse_target
from base.text import print_table, printable
from report.record import EpochRecord, Json

# Options that only say where a run lies, or how its data is read.
LOCATIONS = {"expID", "expDir", "given", "nThreads", "startMethod", "timeout"}
# Curves of more runs than that cannot be told apart.
MAX_DRAWN = 36


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


def runs_below(folder: Path) -> dict[str, FinishedRun]:
    """Return all runs below a folder that have finished an epoch, the best first.

    Names those that it leaves out. Raises Refused where there are fewer than two.
    """
    runs, left_out = {}, []
    for path in sorted(folder.rglob("options.json")):
        try:
            runs[printable(path.parent)] = read(path.parent)
        except Refused as error:
            left_out.append(str(error))
    for message in left_out:
        print(f"left out: {message}", file=sys.stderr)
    if len(runs) < 2:
        raise Refused(f"{folder} holds {len(runs)} runs with a finished epoch, 2 are needed")
    return dict(sorted(runs.items(), key=lambda pair: -_best_top1(pair[1].history)))


def short_names(paths: list[str]) -> list[str]:
    """Return what tells the runs apart: their paths without the folders that all begin with, and
    end with.
    """
    parts = [Path(path).parts for path in paths]
    while len(parts) > 1 and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and all(len(p) > 1 and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    return [str(Path(*p)) for p in parts]


def _best_top1(history: list[EpochRecord]) -> float:
    return max(-1.0 if record.test_top1 is None else record.test_top1 for record in history)


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
    parser.add_argument("runs", nargs="*", type=file_of, metavar="RUN", help=about)
    about = "take all runs below this folder, and rank them"
    parser.add_argument("--sweep", type=file_of, metavar="FOLDER", help=about)
    about = "what the curves are drawn over (default: epoch)"
    parser.add_argument("--by", choices=("epoch", "step", "seconds"), default="epoch", help=about)
    picture = "picture (default: compare.png)"
    parser.add_argument("--out", type=file_of, default=Path("compare.png"), help=picture)
    arguments = parser.parse_args(argv)
    if bool(arguments.runs) == bool(arguments.sweep):
        parser.error("name runs, or a folder of runs with --sweep")

    with clear_errors():
        if arguments.sweep:
            found = runs_below(arguments.sweep)
        else:
            found = {printable(folder): read(folder) for folder in arguments.runs}
        refuse_target(arguments.out, is_ours=is_our_picture)
        for run in found:
            if arguments.out.resolve().parent == Path(run).resolve() and arguments.out.exists():
                raise Refused(f"{arguments.out} is a file of the run: name another picture")
        runs = dict(zip(short_names(list(found)), found.values(), strict=True))
        print_table(rows(runs))
        if apart := tested_apart(runs):
            print(apart)
        from report import pictures

        histories = {name: run.history for name, run in list(runs.items())[:MAX_DRAWN]}
        pictures.comparison(histories, arguments.out, by=arguments.by, named=True)
        more = f" of the first {MAX_DRAWN}" if len(runs) > MAX_DRAWN else ""
        print(f"curves{more}: {arguments.out}")
        process.refuse_lost()


if __name__ == "__main__":
    main(sys.argv[1:])
