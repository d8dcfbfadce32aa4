"""The campaigns at their full trial counts, minutes each: `pytest -m campaign`."""

import damage
import disk_full
import kill
import non_finite
import pytest
import signals
import workers

pytestmark = pytest.mark.campaign


def test_kill() -> None:
    result = kill.run(200)
    assert result["equal"] == 200
    assert result["inside_a_save"] >= 40
    assert result["finished_saves_lost"] == 0


def test_workers() -> None:
    assert workers.run()["equal"] == len(workers.WAYS)


def test_damage() -> None:
    result = damage.run(1700)
    assert result["silently_changed"] == 0
    assert result["refused_by_name"] == result["fell_back"] == result["trials"] - result["read_unchanged"]


def test_disk_full() -> None:
    assert disk_full.run(30)["all"] == 30


def test_signals() -> None:
    result = signals.run(50)
    assert result["stopped"] == 50
    assert result["equal"] == result["saved_in_time"] == result["trials"]
    assert result["orphans"] == 0


def test_non_finite() -> None:
    result = non_finite.run(180)
    assert result["unchanged_bitwise"] == result["bad_steps"]
    assert result["third_in_a_row"] == {"status": 1, "told": True, "checkpoint_finite": True}
