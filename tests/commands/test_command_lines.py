"""Whatever a person types, a program ends in one line, and nobody's files are touched."""

import arguments


def test_random_command_lines_end_in_one_line() -> None:
    result = arguments.run(40, seed=3)
    assert (result["wrong"], result["lost"]) == (0, 0), result["examples"]
    # Calls that get far and calls that are wrong: both kinds are there.
    assert result["statuses"]["0"] > 5
    assert result["statuses"]["2"] > 10
