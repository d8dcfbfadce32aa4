"""Runs side by side: `python compare.py RUN RUN ... [--out compare.png]`. A run is its folder, as training names it.

The table has the options that differ, the best test top-1 and its epoch, the time and the images a second; the picture
has the curves.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from base.arguments import Parser
from base.errors import Refused, clear_errors
from base.text import printable, table

PLACES = {"expID", "expDir", "given"}  # options that only say where a run lies


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a run's options and its log's records. Raises Refused."""
    try:
        options = json.loads((folder / "options.json").read_text())["options"]
        history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except OSError as error:
        raise Refused(f"{folder} is no run's folder: {Path(error.filename).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{folder}: options.json or log.jsonl cannot be read: {error}") from None
    if not history:
        raise Refused(f"{folder} has finished no epoch yet: compare it later")
    return options, history


def rows(runs: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]) -> list[list[str]]:
    """Return the table, its heading first."""
    every = set.intersection(*(set(options) for options, _ in runs.values())) - PLACES  # those that all of them know
    differing = sorted(name for name in every if len({json.dumps(options.get(name)) for options, _ in runs.values()}) > 1)
    table = [["run", *differing, "epochs", "best top-1", "epoch", "last top-1", "hours", "images/s"]]
    for name, (options, history) in runs.items():
        best = max(history, key=lambda record: -1 if record.get("test_top1") is None else record["test_top1"])
        rates = sorted(record["images_per_second"] or 0 for record in history)
        figures = [_percent(best), str(best["epoch"]), _percent(history[-1])]
        hours = sum(record["seconds"] for record in history) / 3600
        shown = [printable(options.get(option, "-")) for option in differing]
        table.append([name, *shown, str(len(history)), *figures, f"{hours:.2f}", f"{rates[len(rates) // 2]:.0f}"])
    return table


def _percent(record: dict[str, Any]) -> str:
    return "-" if record.get("test_top1") is None else f"{record['test_top1']:.2f}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder: cache/mnist/alexnetbn")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), help="picture (default: compare.png)")
    arguments = parser.parse_args(argv)
    with clear_errors():
        runs = {printable(folder): read(folder) for folder in arguments.runs}
        table(rows(runs))
        from report import pictures

        pictures.comparison({name: history for name, (_, history) in runs.items()}, arguments.out)
        print(f"curves: {arguments.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
