"""SIGTERM a run and its workers at random instants, also in tests and in saves: saved in 5 s, goes
on bit for bit.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import Child, fingerprint, finish, image_options, make_images, scratch, script

MOST_SECONDS = 5


def group_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def orphans(pid: int) -> bool:
    """True if a process of the run's group is there six seconds after its end: a worker that was
    just being started looks for its run every five.
    """
    end = time.monotonic() + 6
    while group_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return group_alive(pid)


def run(trials: int = 50, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts = {"stopped": 0, "saved_in_time": 0, "equal": 0, "orphans": 0, "slowest_seconds": 0.0}
    with scratch() as base:
        images = make_images(base / "images")
        child = Child(image_options(base / "whole", images, "--nThreads", "2"))
        while child.alive() and child.steps < 1:
            time.sleep(0.001)
        # From the first step on: the server that workers are forked from takes seconds to start.
        started = time.monotonic()
        assert child.wait() == 0, child.text()
        whole = time.monotonic() - started
        expected = fingerprint(base / "whole")
        trial = 0
        while counts["stopped"] < trials and trial < 4 * trials:
            trial += 1
            arguments = image_options(
                base / f"trial{trial}", images, "--nThreads", "2", "--continue"
            )
            child = Child(arguments)
            while child.alive() and child.steps < 1:
                time.sleep(0.001)
            end = time.monotonic() + pick.uniform(0, 0.8) * whole
            while child.alive() and time.monotonic() < end:
                time.sleep(0.001)
            asked = time.monotonic()
            if child.alive():
                os.killpg(child.pid, 15)  # as torchrun and schedulers do: the whole group
            status = child.wait()
            seconds = time.monotonic() - asked
            counts["stopped"] += status == 143
            counts["saved_in_time"] += seconds < MOST_SECONDS and (
                status == 0 or "--continue" in child.text()
            )
            counts["slowest_seconds"] = round(max(counts["slowest_seconds"], seconds), 2)
            counts["orphans"] += orphans(child.pid)
            finish(arguments)
            counts["equal"] += fingerprint(base / f"trial{trial}") == expected
    return {"trials": trial, **counts}


if __name__ == "__main__":
    script("5 SIGTERM, one process", run, 50)
