"""The campaigns at their full trial counts, minutes each: `pytest -m campaign`."""

import os
import shutil

import arguments
import bad_images
import changed_files
import damage
import disk_full
import hosts
import kept_pixels
import kill
import learn
import lost_ranks
import non_finite
import odd_data
import once
import other_readers
import payloads
import pytest
import rank_signals
import restarts
import signals
import soak
import worker_counts
import worker_deaths

from models import OURS

pytestmark = pytest.mark.campaign


def test_kill() -> None:
    result = kill.run(200)
    assert result["equal"] == 200
    assert result["inside_a_save"] >= 40
    assert result["finished_saves_lost"] == 0


def test_workers() -> None:
    assert worker_counts.run()["equal"] == len(worker_counts.WAYS)


def test_damage() -> None:
    result = damage.run(1700)
    assert result["silently_changed"] == 0
    assert (
        result["refused_by_name"]
        == result["fell_back"]
        == result["trials"] - result["read_unchanged"]
    )


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


def test_signals_of_two_ranks() -> None:
    result = rank_signals.run(50)
    assert result["equal"] == result["saved_in_time"] == 50
    assert result["stopped"] >= 45
    assert result["orphans"] == 0


def test_a_killed_rank() -> None:
    result = restarts.run(30)
    assert result["equal"] == result["ended_well"] == 30
    assert result["slowest_end_seconds"] < 60


def test_each_image_once() -> None:
    assert once.run()["each_image_once"] == 150


def test_two_hosts() -> None:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and ip")
    result = hosts.run(1)
    assert [result[name] for name in ("trained", "readable_error", "went_on", "equal")] == [
        1,
        1,
        1,
        1,
    ]


def test_other_readers() -> None:
    assert other_readers.run()["read_by_dbcollection_0.2.6"] == 2


def test_lost_workers() -> None:
    result = worker_deaths.run(120)
    assert result["named_in_time"] == result["saved"] == result["trials"]
    assert result["equal"] == 20
    assert result["orphans"] == result["left_in_shared_memory"] == 0


def test_lost_ranks() -> None:
    result = lost_ranks.run(30)
    assert result["ended_in_time"] == result["readable"] == result["equal"] == 30
    assert result["orphans"] == 0


def test_changed_files() -> None:
    assert changed_files.run(36_000)["failures"] == 0


def test_bad_images() -> None:
    result = bad_images.run(20)
    assert {result.pop("trials")} == set(result.values())


def test_odd_data() -> None:
    assert odd_data.run(300)["wrong"] == 0


def test_command_lines() -> None:
    result = arguments.run(3000)
    assert (result["wrong"], result["lost"]) == (0, 0), result["examples"]


def test_attacks() -> None:
    result = payloads.run()
    assert (result["refused"], result["canary_touched"]) == (result["trials"], 0)


def test_soak() -> None:
    result = soak.run(50)
    assert result["ended_well"]
    assert max(result["MiB_per_1000_images"], result["MiB_per_1000_decodes"]) < 1


@pytest.mark.parametrize("name", OURS)
def test_every_network_learns(name: str) -> None:
    assert learn.learn(name, learn.EPOCHS.get(name, 12))["test_top1"] > 90


def test_kept_pixels() -> None:
    result = kept_pixels.run(1000)
    assert result["wrong_pixels"] == result["refused"] == 0
