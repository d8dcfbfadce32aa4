"""How foreign text is shown: on one line, whatever is in it."""

import sys
import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, direction-changing, undecodable, line and paragraph ends


def printable(text: object) -> str:
    """Return text with control, direction-changing and undecodable characters escaped, so that it stays one line."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in str(text))


def table(rows: list[list[str]]) -> None:
    """Print rows with aligned columns; the first is the heading."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print(
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()
