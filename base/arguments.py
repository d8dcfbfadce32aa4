"""Options as fields of a dataclass, and argparse made from them, with errors of one line."""

import argparse
import dataclasses
import difflib
import os
import types
import typing
from typing import Any, NoReturn

from base.text import printable


def option(
    default: Any, group: str, about: str, *, choices: Any = None, listed: str = "", low: float | None = None, shown: str = ""
) -> Any:
    """Declare one option. choices: allowed values; listed: how they are named where they are many; low: the smallest number;
    shown: the default as `--help` says it."""
    metadata = {"group": group, "help": about, "choices": choices, "listed": listed, "low": low, "shown": shown}
    return dataclasses.field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        alone = os.environ.get("RANK", "0") == "0"  # the other ranks have the same to say
        self.exit(2, f"{self.prog}: error: {printable(message)}\n" if alone else None)


def described(name: str, field: dataclasses.Field) -> dict[str, Any]:
    """Return what argparse wants to know of one field."""
    about = field.metadata["help"]
    shown = field.metadata["shown"] or field.default
    kind = kind_of(field)
    if kind is bool:
        shown = "on" if field.default else "off"
        action = "store_true" if name in ("continue_", "overwrite", "test") else argparse.BooleanOptionalAction
        return {"dest": name, "default": argparse.SUPPRESS, "action": action, "help": f"{about} (default: {shown})"}
    choices = field.metadata["choices"]
    listed = field.metadata["listed"] and f": {field.metadata['listed']}"
    argument: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "metavar": kind.__name__.upper()}
    argument |= {"type": reader(name, kind, field), "help": f"{about}{listed} (default: {shown})".replace("%", "%%")}
    if choices and not listed:
        argument["metavar"] = "|".join(choices)
    return argument


def kind_of(field: dataclasses.Field) -> type:
    """Return the type of a field's value, None aside."""
    if isinstance(field.type, types.UnionType):
        return next(kind for kind in typing.get_args(field.type) if kind is not types.NoneType)
    return typing.cast(type, field.type)


def reader(name: str, kind: type, field: dataclasses.Field) -> Any:
    """Return a function that turns text into the field's value, or says what is allowed."""
    choices, low = field.metadata["choices"], field.metadata["low"]

    def read(text: str) -> Any:
        if choices and text not in choices:
            raise argparse.ArgumentTypeError(f"'{text}' is not {allowed(field)}{nearest(text, choices)}")
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {_wanted(kind, low)}") from None
        if low is not None and not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"'{text}' is not {_wanted(kind, low)}")
        return value

    return read


def allowed(field: dataclasses.Field) -> str:
    return f"one of {field.metadata['listed'] or ', '.join(field.metadata['choices'])}"


def _wanted(kind: type, low: float | None) -> str:
    return {int: "a whole number", float: "a number"}[kind] + ("" if low is None else f" from {low} on")


def nearest(word: str, allowed: typing.Iterable[str]) -> str:
    """Return "; did you mean 'X'?", or "" where nothing is near."""
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), by_lower, 1, 0.5)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""
