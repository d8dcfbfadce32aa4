"""SIGTERM a run of 2 ranks with 2 workers each at random instants: saved in 5 s, all at one step,
goes on bit for bit.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from launch import Launch
from rig import fingerprint, image_options, make_images, scratch, script

MOST_SECONDS = 5


def run(trials: int = 50, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts = {
        "trials": trials,
        "stopped": 0,
        "saved_in_time": 0,
        "equal": 0,
        "orphans": 0,
        "slowest_seconds": 0.0,
    }
    os.environ["STEP_SECONDS"] = "0.1"
    with scratch() as base:
        images = make_images(base / "images")
        assert Launch(2, image_options(base / "whole", images, "--nThreads", "2")).wait() == 0
        expected = fingerprint(base / "whole")
        for trial in range(trials):
            folder = base / f"trial{trial}"
            arguments = image_options(folder, images, "--nThreads", "2", "--continue")
            launch = Launch(2, arguments)
            launch.until(folder, 1)
            time.sleep(pick.uniform(0, 1.2))  # the run lasts a little longer
            ranks = launch.ranks
            asked = time.monotonic()
            if launch.process.poll() is None:
                launch.process.terminate()  # torchrun hands it on to its ranks
            while (
                any(os.path.exists(f"/proc/{pid}") for pid in ranks)
                and time.monotonic() < asked + 30
            ):
                time.sleep(0.01)
            seconds = time.monotonic() - asked
            launch.wait()
            said = launch.text()
            counts["stopped"] += "stopped by SIGTERM" in said
            counts["saved_in_time"] += seconds < MOST_SECONDS
            counts["slowest_seconds"] = round(max(counts["slowest_seconds"], seconds), 2)
            time.sleep(0.2)
            counts["orphans"] += len(launch.ranks)
            assert Launch(2, arguments).wait() == 0
            counts["equal"] += fingerprint(folder) == expected
    return counts


if __name__ == "__main__":
    script("5 SIGTERM, two ranks", run, 50)
