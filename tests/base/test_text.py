"""Foreign text stays one line, and what can be read of it stays as it is."""

import pytest

from base.text import listed, print_table, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 'text' \\ 100 %", "plain 'text' \\ 100 %"),
        ("日本語 é ß ü\u0308", "日本語 é ß ü\u0308"),
        ("two\nlines\tand\r", "two\\nlines\\tand\\r"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        # What turns the direction of a line, or ends it elsewhere.
        ("a\u202eb\u2028c\u200bd", "a\\u202eb\\u2028c\\u200bd"),
        ("caf\udcff", "caf\\udcff"),
        (3.5, "3.5"),
        (None, "None"),
    ],
)
def test_text_is_shown_on_one_line(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_a_list_is_cut_after_some_names() -> None:
    names = ["a", "b\n", "c", "d", "e"]
    assert listed(names) == "a, b\\n, c, d, e"
    assert listed([*names, "f"]) == "a, b\\n, c, d, e, ..."
    assert listed(names, 2) == "a, b\\n, ..."
    assert listed([]) == ""


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["name", "n"], ["a long one", "5"], ["b", "1234"]])
    assert capsys.readouterr().out == (
        "name           n\n----------  ----\na long one     5\nb           1234\n"
    )


def test_a_table_without_rows_is_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["name", "top-1"]])
    assert capsys.readouterr().out == "name  top-1\n----  -----\n"
