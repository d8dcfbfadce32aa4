"""Options as fields of a dataclass, and argparse made from them, with errors of one line."""

import argparse
import dataclasses
import difflib
import os
import re
import signal
import time
import types
import typing
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from base.errors import Refused
from base.text import printable

Field = dataclasses.Field[Any]
Keywords = dict[str, Any]  # of argparse's add_argument


@dataclass(frozen=True)
class Every:
    """How often something happens: every so many steps, or every so many minutes.

    One of the two is None.
    """

    steps: int | None
    minutes: float | None

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Read `500` or `10m`. Raises ValueError."""
        number = text.removesuffix("m")
        if text.endswith("m") and is_whole(number.replace(".", "", 1)) and float(number) > 0:
            return cls(None, float(number))
        if is_whole(text) and int(text) > 0:
            return cls(int(text), None)
        raise ValueError(f"'{text}' is neither steps (`500`) nor minutes (`10m`)")


def option(
    default: object,
    group: str,
    about: str,
    *,
    choices: Collection[str] | None = None,
    listed: str = "",
    low: float | None = None,
    shown: str = "",
    path: bool = False,
) -> Any:
    """Declare one option.

    choices: allowed values; listed: how they are named where they are many; low: the smallest
    number; shown: the default as `--help` says it; path: it names a file or folder.
    """
    metadata = {
        "group": group,
        "help": about,
        "choices": choices,
        "listed": listed,
        "low": low,
        "shown": shown,
        "path": path,
    }
    return dataclasses.field(default=default, metadata=metadata)


# Seconds after which a rank that says nothing ends by itself.
WAIT_FOR_FIRST = 10.0


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        # Under torchrun every rank has the same to say.
        speaks = os.environ.get("RANK", "0") in ("", "0")
        if not speaks:
            # torchrun ends all ranks with the first that ends: that must be the one that speaks.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(WAIT_FOR_FIRST)
        self.exit(2, f"{self.prog}: error: {printable(message)}\n" if speaks else None)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse takes `--option=--` for an option without a value, and makes it an empty list.
        if action.option_strings and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected a value, not '--'")
        return super()._get_values(action, arg_strings)


def described(name: str, field: Field) -> Keywords:
    """Return what argparse wants to know of one field."""
    about, kind = field.metadata["help"], kind_of(field)
    shown = field.metadata["shown"] or field.default
    argument: Keywords = {"dest": name, "default": argparse.SUPPRESS}

    if kind is bool:
        shown = "on" if field.default else "off"
        # These three act once; --no-X would say nothing.
        once = name in ("continue_", "overwrite", "test")
        argument["action"] = "store_true" if once else argparse.BooleanOptionalAction
        return argument | {"help": f"{about} (default: {shown})"}

    choices, listed = field.metadata["choices"], field.metadata["listed"]
    values = f": {listed}" if listed else ""
    argument["metavar"] = "|".join(choices) if choices and not listed else kind.__name__.upper()
    argument["type"] = reader(field)
    return argument | {"help": f"{about}{values} (default: {shown})".replace("%", "%%")}


def kind_of(field: Field) -> type:
    """Return the type of a field's value, None aside."""
    if isinstance(field.type, types.UnionType):
        return next(kind for kind in typing.get_args(field.type) if kind is not types.NoneType)
    return typing.cast(type, field.type)


def reader(field: Field) -> Callable[[str], Any]:
    """Return a function that turns text into the field's value, or raises what is allowed."""
    kind = kind_of(field)
    choices = field.metadata["choices"]
    low = field.metadata["low"]
    if field.metadata["path"]:
        return path_of

    def read(text: str) -> Any:
        if choices and text not in choices:
            raise argparse.ArgumentTypeError(
                f"'{text}' is not {allowed(field)}{nearest(text, choices)}"
            )

        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {_wanted(kind, low)}") from None
        if low is not None and not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"'{text}' is not {_wanted(kind, low)}")
        return value

    return read


def path_of(text: str) -> str:
    """Return a path with ~ as the home folder: shells leave it in `--expDir=~/runs`.

    Raises argparse.ArgumentTypeError where it would break the lines that it is printed in.
    """
    if not text or any(unicodedata.category(character) == "Cc" for character in text):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be a path here: rename it")
    return os.path.expanduser(text)


def file_of(text: str) -> Path:
    """Return what `path_of` does, as a Path."""
    return Path(path_of(text))


def number_of(variable: str, default: int) -> int:
    """Return what a launcher set in the environment; unset and empty are the same.

    Raises Refused for what is no number.
    """
    text = os.environ.get(variable) or str(default)
    if not is_whole(text):
        raise Refused(f"the environment's {variable} is '{text}', which is no whole number")
    return int(text)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from low to high, for argparse."""

    def read(text: str) -> int:
        if not is_whole(text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)

    return read


def core_count() -> int:
    """Return the cores that this process may use. Linux knows; elsewhere it is all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# s3://bucket/..., https://...: no path on a disk looks like that.
ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_address(text: str) -> bool:
    """True for the address of files that lie elsewhere."""
    return ADDRESS.match(text) is not None


COLUMNS = ("image", "label", "split", "name")


def columns_of(text: str | None) -> dict[str, str]:
    """Return what `image=path,label=species` says. Raises ValueError."""
    found: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        what, _, name = part.partition("=")
        if what not in COLUMNS or not name or what in found:
            form = "image=NAME,label=NAME,split=NAME,name=NAME, or some of these"
            raise ValueError(f"'{text}' is not {form}")
        found[what] = name
    return found


def is_whole(text: str) -> bool:
    """True for one or more of the digits 0 to 9."""
    return text.isascii() and text.isdecimal()


def allowed(field: Field) -> str:
    """Return the values that a field may have, as errors name them."""
    return f"one of {field.metadata['listed'] or ', '.join(field.metadata['choices'])}"


def _wanted(kind: type, low: float | None) -> str:
    wanted = {int: "a whole number", float: "a number"}[kind]
    return wanted if low is None else f"{wanted} of at least {low}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'?", or "" where nothing is near."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, 1, 0.5)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


# What a user can do about an image beyond a limit, where a program has the options below.
LIMIT_WAYS = {
    "pixels": "raise --maxMegapixels",
    "bytes": "raise --maxMegabytes",
    "links": "--followLinks allows it",
}


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which image files are read at all, with main.py's defaults."""
    above = "a file with more is bad (default: %(default)s)"
    parser.add_argument("--maxMegapixels", type=whole_number(1, 1 << 20), default=200, help=above)
    parser.add_argument("--maxMegabytes", type=whole_number(1, 1 << 20), default=256, help=above)
    links = "read links that lead out of the folder of the images"
    parser.add_argument("--followLinks", action="store_true", help=links)
