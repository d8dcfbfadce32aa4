"""Whatever a person types, a program ends in one line, and nobody's files are touched."""

import re
from types import ModuleType

import arguments
import pytest

import compare
import export
import main
import predict
import prepare


def test_random_command_lines_end_in_one_line() -> None:
    result = arguments.run(40, seed=3)
    assert (result["wrong"], result["lost"]) == (0, 0), result["examples"]
    # Calls that get far and calls that are wrong: both kinds are there.
    assert result["statuses"]["0"] > 5
    assert result["statuses"]["2"] > 10


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (main, ["--nEpochs=--"]),
        (main, ["--expDir=--"]),
        (predict, ["best.pt", "photo.jpg", "-k--"]),
        (predict, ["best.pt", "photo.jpg", "--csv=--"]),
        (export, ["best.pt", "--to", "pt2", "out.pt2", "--calibrate=--"]),
        (prepare, ["info", "--data_dir=--"]),
        (compare, ["a", "b", "--out=--"]),
    ],
)
def test_two_hyphens_are_no_value(
    program: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse itself makes an empty list of them."""
    with pytest.raises(SystemExit) as stop:
        program.main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"\S+\.py.*: error: argument -\S+: expected a value, not '--'\n", said)
