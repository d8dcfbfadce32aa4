"""A table of image files and their labels: CSV, TSV or Parquet, a row an image, in any order.

Columns are found by their usual names. Images are numbered by class and path, whatever the order of
the rows, so that a table of a folder trains exactly as the folder does.
"""

import codecs
import csv
import dataclasses
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from base.arguments import is_address, is_whole
from base.errors import Refused
from base.files import read_bytes, whole_file
from base.text import listed, printable
from datasets.containers import pyarrow_parquet
from datasets.images import FileImages, Names, composed, relabelled
from datasets.parts import PARTS, WORDS, Wanted, choose_part
from datasets.split import side_of

# Usual names of each column, in lower case, in the order in which they are looked for.
COLUMNS = {
    "image": ("file_name", "path", "image", "filename", "image_path", "filepath", "file"),
    "label": ("label", "class", "target"),
    "split": ("split", "set", "fold"),
}
# Of a table that is written.
HEADING = ["file_name", "label", "split"]
SEPARATORS = ",;\t|"
# Bytes of a table: of some 10 million rows.
MAX_TABLE = 1 << 30
GZIP = b"\x1f\x8b"
# Of other programs' own first lines.
EXCEL = re.compile(r"sep=.\r?\n")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Rows that are named of those with one fault.
SHOWN = 5
# No label, as people and R and pandas write it.
NO_LABEL = ("", "-1", "-1.0", "NA", "NaN", "nan", "null")
# A whole number, as pandas writes it where some are missing.
WHOLE = re.compile(r"\d{1,18}(\.0+)?")
SHORT, LONG = "with too few columns", "with too many columns (a comma that is not quoted?)"
NO_IMAGE, UNLABELLED = "without an image", "without a label"
MISSING, DOUBLED = "whose file is missing", "doubled"
ADDRESS = "whose image lies at an address, which tables do not read"
NO_PART = "whose part is none of train, val and test"
OTHER_CLASS, OTHER_PART = "with another class for one file", "with another part for one file"


@dataclass(frozen=True)
class Row:
    """One row: its number in the file, 1 is the heading; the image's path, label and part, each ""
    where there is none.
    """

    number: int
    image: str
    label: str
    part: str
    fault: str = ""


def open_table(data_dir: str | None, part: str, **settings: Any) -> FileImages:
    """Open one part of a table's images.

    data_dir: where relative paths begin, None for the table's folder; settings: of `Wanted`. Raises
    Refused for rows that are wrong, by their numbers; with skip they are left out and counted.
    """
    wanted = Wanted(part, **settings)
    if wanted.labels is None:
        raise Refused("a table of images and labels is needed", limit="table")
    where = os.path.abspath(data_dir or os.path.dirname(wanted.labels) or ".")
    rows = [_placed(row, where) for row in read(wanted.labels, wanted.columns)]
    chosen = _of_part(rows, wanted)
    faults = _faults(rows, chosen, where, wanted)
    left_out = _refuse_faults(faults, wanted)
    wrong = {row.number for found in faults.values() for row in found}
    chosen = [row for row in chosen if row.number not in wrong]
    if not chosen:
        raise Refused(f"{wanted.labels} has no image left")

    classes = _ordered({composed(row.label) for row in chosen if row.label not in NO_LABEL})
    numbers = {name: number for number, name in enumerate(classes)}
    # Those without a label are there only where none is needed.
    found = sorted((numbers.get(composed(row.label), -1), row.image) for row in chosen)
    labels = np.array([label for label, _ in found], np.int64)
    names = Names([image for _, image in found])
    images = FileImages(names, labels, classes, where, left_out=left_out)
    images.limits = wanted.limits or images.limits
    if wanted.classes is not None:
        known = relabelled(images, wanted.classes)
        assert isinstance(known, FileImages)
        images = known
    if wanted.val_share is not None:
        images = side_of(images, part, wanted.val_share, wanted.seed, wanted.split_file)
    return images


def _placed(row: Row, where: str) -> Row:
    """Return the row with its path in one form: relative to `where` if it lies below it."""
    if not row.image:
        return row
    image = row.image
    if is_address(image):
        return dataclasses.replace(row, fault=ADDRESS)
    # As Windows writes them.
    if "\\" in image and not os.path.lexists(os.path.join(where, image)):
        image = image.replace("\\", "/")
    path = os.path.normpath(os.path.join(where, image))
    inside = path.removeprefix(os.path.join(where, ""))
    return Row(row.number, inside, row.label, row.part, row.fault)


def _of_part(rows: Sequence[Row], wanted: Wanted) -> list[Row]:
    """Return the rows of the part that is asked for. Raises Refused where there are none."""
    parts = list(dict.fromkeys(row.part for row in rows if not row.fault))
    table = wanted.labels or ""
    if not parts:
        return list(rows)
    if wanted.val_share is None:
        chosen = choose_part(parts, wanted.part, table)
    else:
        tested = next((name for name in PARTS["test"] if name in parts), None)
        if tested:
            raise Refused(f"{table} has a split of its own, {tested}", limit="own split")
        chosen = "train" if "train" in parts else ""
    return [row for row in rows if row.part == chosen or row.fault]


Faults = dict[str, list[Row]]


def _faults(rows: Sequence[Row], chosen: Sequence[Row], where: str, wanted: Wanted) -> Faults:
    """Return the rows that are wrong, by what is: of the chosen ones, and of those that contradict
    any other.
    """
    faults: Faults = {}
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        if row.image and not row.fault:
            by_image.setdefault(row.image, []).append(row)
    for same in by_image.values():
        if len(same) > 1:
            labels = {composed(row.label) for row in same}
            parts = {row.part for row in same}
            fault = OTHER_CLASS if len(labels) > 1 else OTHER_PART if len(parts) > 1 else DOUBLED
            # Of equal rows the first stays.
            faults.setdefault(fault, []).extend(same[1:] if fault == DOUBLED else same)
    for row in chosen:
        fault = row.fault
        if not fault and not row.image:
            fault = NO_IMAGE
        elif not fault and wanted.labelled and row.label in NO_LABEL:
            fault = UNLABELLED
        elif not fault and not _is_there(os.path.join(where, row.image)):
            fault = MISSING
        if fault:
            faults.setdefault(fault, []).append(row)
    return faults


def _is_there(path: str) -> bool:
    """False for what is missing, and for a folder: the rest is the reader's to refuse."""
    return os.path.exists(path) and not os.path.isdir(path)


def _refuse_faults(faults: Faults, wanted: Wanted) -> dict[str, int]:
    """Return how many rows are left out for what. Raises Refused where none may be."""
    if not faults:
        return {}
    if wanted.skip:
        return {f"rows {fault}": len(rows) for fault, rows in faults.items()}
    told = []
    for fault, rows in faults.items():
        numbers = ", ".join(str(row.number) for row in rows[:SHOWN])
        more = ", ..." if len(rows) > SHOWN else ""
        first = f" ({printable(rows[0].image)})" if rows[0].image else ""
        told.append(f"{len(rows)} {fault}: row {numbers}{more}{first}")
    raise Refused(f"{wanted.labels} has wrong rows: {'; '.join(told)}", limit="bad rows")


def read(path: str, columns: Mapping[str, str]) -> list[Row]:
    """Return all rows. columns: what a user calls image, label and split. Raises Refused."""
    if path.lower().endswith(".parquet"):
        heading, rows = _parquet(path)
    else:
        heading, rows = _text(path)
    places = {what: _place(heading, what, columns, path) for what in COLUMNS}
    for what in ("image", "label"):
        if places[what] is None:
            missing = f"has no column of {what}s, it has {listed(list(heading))}"
            raise Refused(f"{path} {missing}", limit="column")
    width = len(heading)
    found = [_row(number, row, places, width) for number, row in enumerate(rows, 2) if any(row)]
    return _whole(_with_parts(found, given="split" in columns))


def _place(heading: Sequence[str], what: str, columns: Mapping[str, str], path: str) -> int | None:
    """Return the number of a column, None where there is none of its names. Raises Refused."""
    names = [name.strip().lower() for name in heading]
    if what in columns:
        if columns[what] in heading:
            return list(heading).index(columns[what])
        if names.count(columns[what].lower()) == 1:
            return names.index(columns[what].lower())
        missing = f"has no column '{columns[what]}', it has {listed(list(heading))}"
        raise Refused(f"{path} {missing}", limit="column")
    usual = (name for name in COLUMNS[what] if name in names)
    name = next(usual, None)
    if name is not None and names.count(name) > 1:
        raise Refused(f"{path} has two columns '{name}'", limit="column")
    return None if name is None else names.index(name)


def _row(number: int, row: Sequence[str], places: Mapping[str, int | None], width: int) -> Row:
    at = [place for place in places.values() if place is not None]
    if len(row) <= max(at):
        return Row(number, "", "", "", SHORT)
    if any(row[width:]):
        return Row(number, "", "", "", LONG)
    image, label, part = (
        "" if place is None else row[place].strip()
        for place in (places["image"], places["label"], places["split"])
    )
    return Row(number, image, label, part)


def _with_parts(rows: list[Row], *, given: bool) -> list[Row]:
    """Return the rows with parts by their usual words.

    A column of other words that only happens to be called split, as numbers of folds are, says
    nothing. Other words in one that was named, or beside the usual ones, are faults.
    """
    known = {row.part: WORDS.get(row.part.lower(), "") for row in rows}
    if not given and not any(known.values()):
        return [Row(row.number, row.image, row.label, "", row.fault) for row in rows]
    return [
        Row(
            row.number,
            row.image,
            row.label,
            known[row.part],
            row.fault or ("" if known[row.part] else NO_PART),
        )
        for row in rows
    ]


def _text(path: str) -> tuple[list[str], Iterator[list[str]]]:
    """Return heading and rows of a CSV or TSV file. Raises Refused."""
    try:
        content = read_bytes(path, MAX_TABLE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"cannot read {path}: {reason}") from None
    if content.startswith(GZIP):
        raise Refused(f"{path} is compressed by gzip: unpack it")
    if content.startswith(UTF16) or b"\0" in content[:4096]:
        raise Refused(f"{path} is in UTF-16 or no text: save it as CSV in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Refused(f"{path} is not in UTF-8 (line {line}): save it as CSV in UTF-8") from None
    try:
        # The separator that makes most of the heading.
        text = EXCEL.sub("\n", text, count=1) if EXCEL.match(text) else text
        first = next((line for line in text.splitlines() if line.strip()), "")
        headings = {sep: next(csv.reader([first], delimiter=sep), []) for sep in SEPARATORS}
        separator = max(SEPARATORS, key=lambda sep: len(headings[sep]))
        form = {"delimiter": separator, "strict": True, "skipinitialspace": True}
        rows = list(csv.reader(io.StringIO(text, newline=""), **form))  # type: ignore[arg-type]
    except csv.Error as error:
        raise Refused(f"{path} is no table that can be read: {error}") from None
    # Blank lines before the heading keep the numbers of the rows.
    blank = next((number for number, row in enumerate(rows) if any(row)), len(rows))
    if blank == len(rows):
        raise Refused(f"{path} is empty")
    return rows[blank], iter([[]] * blank + rows[blank + 1 :])


def _parquet(path: str) -> tuple[list[str], Iterator[list[str]]]:
    """Return heading and rows of a Parquet file, of the columns that are texts or numbers."""
    parquet = pyarrow_parquet()
    try:
        types = import_module("pyarrow").types
        nested = (types.is_nested, types.is_binary, types.is_large_binary)
        schema = parquet.read_schema(path)
        plain = [field.name for field in schema if not any(kind(field.type) for kind in nested)]
        table = parquet.ParquetFile(path).read(columns=plain, use_threads=False)
        columns = [table.column(name).to_pylist() for name in plain]
    # pyarrow raises its own, and others, for what is damaged.
    except Exception as error:
        raise Refused(f"{path} is no Parquet file that can be read: {printable(error)}") from None
    texts = ([("" if value is None else str(value)) for value in column] for column in columns)
    return plain, (list(row) for row in zip(*texts, strict=True))


def write(
    path: str | os.PathLike[str],
    parts: Mapping[str, FileImages],
    root: str,
    *,
    escapes: bool = False,
) -> None:
    """Write a table of images, whole or not at all.

    parts: by the words of the split column; root: where relative paths begin; escapes: names that
    are not in Unicode are escaped, for whoever looks at them. Raises Refused for one otherwise.
    """
    with whole_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADING)
        for part, images in parts.items():
            above = os.path.relpath(images.where, root) if images.packed is None else "."
            for name, label in zip(images.names, images.labels.tolist(), strict=True):
                shown = os.path.normpath(os.path.join(above, name))
                row = [shown, images.classes[label] if label >= 0 else "", part]
                if not _in_unicode(row):
                    if not escapes:
                        raise Refused(f"'{printable(name)}' is no name in UTF-8: rename it")
                    row = list(map(printable, row))
                writer.writerow(row)


def _in_unicode(texts: Iterable[str]) -> bool:
    """False for the name of a file that is no text in the system's encoding."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def in_usual_order(classes: Sequence[str]) -> bool:
    """True for classes that a table gives these numbers without being told."""
    return list(classes) == _ordered({composed(name) for name in classes})


def _ordered(names: Iterable[str]) -> list[str]:
    """Return class names in their order: as numbers, where all are."""
    texts = sorted(names)
    # Longer ones are no numbers to anyone.
    are_numbers = all(is_whole(text) and len(text) <= 18 for text in texts)
    return sorted(texts, key=int) if are_numbers else texts


def _whole(rows: list[Row]) -> list[Row]:
    """Return the rows with labels as whole numbers, where all of them are: 1 for 1.0."""
    labels = [row.label for row in rows if row.label not in NO_LABEL]
    if not any("." in label for label in labels) or not all(map(WHOLE.fullmatch, labels)):
        return rows
    return [dataclasses.replace(row, label=row.label.partition(".")[0]) for row in rows]
