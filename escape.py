"""How foreign text is shown: on one line, whatever is in it."""

import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, direction-changing, undecodable, line and paragraph ends


def printable(text: object) -> str:
    """Return text with control, direction-changing and undecodable characters escaped, so that it stays one line."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in str(text))
