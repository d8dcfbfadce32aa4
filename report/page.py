"""report.html: one file that says what a run was, how well it did, and what it got wrong.

It opens from the disk: styles, script and pictures are in it, and all text from outside is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from base.files import whole_file
from base.text import printable
from report.tables import Tested, class_rows, mistake_rows
from training.metrics import Bin, calibration

TEMPLATES = Path(__file__).parent / "templates"
# Rows of mistakes, beyond which the page would be mistakes.csv.
MAX_MISTAKES = 200
# Pictures that are shown where they are there.
PICTURES = ("curves.png", "mistakes.png", "first_batch.png", "test_batch.png")


@dataclass(frozen=True)
class About:
    """What a page says of its run beside results.

    name: of data set and run; header: what the console's header said, by name; options: name,
    value and default of those that differ; commands: with what each does.
    """

    name: str
    header: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[tuple[str, Any, Any]] = ()
    commands: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Found:
    """What a page keeps of a test: small, where its scores are as large as the test set.

    count: images; top1: percent; wrong: images taken for another class; mistakes: the first of
    them; error, bins: of the calibration; epoch: of a run, whose best it is.
    """

    count: int
    top1: float | None
    columns: list[str]
    classes: list[list[str]]
    wrong: int
    mistakes: list[dict[str, str]]
    error: float
    bins: list[Bin]
    epoch: int | None = None


def found(tested: Tested, epoch: int | None = None) -> Found:
    """Return what a page shows of a test."""
    columns, classes = class_rows(tested)
    # The page is for people: classes.csv has all digits.
    classes = [[_brief(cell) for cell in row] for row in classes]
    rows = mistake_rows(tested.scores, tested.labels, tested.name, tested.classes)
    names = "path", "label", "predicted", "own", "best", "loss"
    mistakes = [dict(zip(names, row, strict=True)) for row in rows[:MAX_MISTAKES]]
    for row in mistakes:
        row["link"] = _link(row["path"])
    top1 = tested.metrics.test_top1
    error, bins = calibration(tested.scores, tested.labels)
    count = len(tested.labels)
    return Found(count, top1, columns, classes, len(rows), mistakes, error, bins, epoch)


def write(folder: Path, about: About, found: Found, epochs: int = 0) -> None:
    """Write report.html into the run's folder. epochs: that are done."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    note = f"{found.wrong} of {found.count} images, the least probable label first: "
    note += "look there for wrong labels."
    if found.wrong > MAX_MISTAKES:
        note += f" These are the first {MAX_MISTAKES}; mistakes.csv has all."
    text = environment.get_template("page.html").render(
        title=printable(about.name),
        lead=_lead(found, epochs),
        header={name: printable(line) for name, line in about.header.items()},
        found=found,
        mistakes_note=note,
        options=[(name, printable(value), printable(was)) for name, value, was in about.options],
        commands=about.commands,
        pictures=_pictures(folder, found.epoch),
    )
    with whole_file(folder / "report.html") as file:
        file.write(text)


def _brief(cell: str) -> str:
    """Return a number with two decimals; any other cell as it is."""
    whole, dot, digits = cell.partition(".")
    is_number = dot and whole.isdecimal() and digits.isdecimal() and len(digits) == 4
    return f"{float(cell):.2f}" if is_number else cell


def _lead(found: Found, epochs: int) -> str:
    if found.top1 is None:
        return "Nothing could be tested."
    result = f"Test top-1 {found.top1:.2f} %"
    if found.epoch is None:
        return f"{result}, of {found.count} images."
    return f"{result} in epoch {found.epoch}, the best of {epochs}."


def _link(path: str) -> str:
    """Return the address of a file, "" for an image that is none of its own."""
    absolute = Path(path).absolute()
    return absolute.as_uri() if absolute.is_file() else ""


def _pictures(folder: Path, epoch: int | None) -> dict[str, str]:
    """Return the pictures that are there, in base64."""
    names = {name: name for name in PICTURES}
    names["confusion"] = "confusion.png" if epoch is None else f"confusion_{epoch}.png"
    # Not each epoch's is drawn: where the best one's is not, the newest.
    if not (folder / names["confusion"]).exists():
        drawn = sorted(folder.glob("confusion_*.png"), key=lambda path: path.stat().st_mtime)
        names["confusion"] = drawn[-1].name if drawn else ""
    return {
        name: base64.b64encode((folder / file).read_bytes()).decode()
        for name, file in names.items()
        if file and (folder / file).is_file()
    }
