"""How foreign text is shown: on one line, whatever is in it."""

import sys
import unicodedata

# Control, direction-changing and undecodable characters, ends of lines and of paragraphs.
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: object) -> str:
    """Return text with control, direction-changing and undecodable characters escaped: it stays one
    line.
    """
    return "".join(_escaped(character) for character in str(text))


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN:
        return character
    return character.encode("unicode_escape").decode()


def listed(names: list[str], most: int = 5) -> str:
    """Return the first names, printable and separated by commas, with dots where there are more."""
    shown = ", ".join(printable(name) for name in names[:most])
    return shown + (", ..." if len(names) > most else "")


def print_table(rows: list[list[str]]) -> None:
    """Print rows with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells))
    sys.stdout.flush()
