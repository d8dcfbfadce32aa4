"""Kill a rank of a run that torchrun starts again: it ends with the weights of the run that nobody
disturbed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from launch import Launch
from rig import fingerprint, options, scratch, script


def run(trials: int = 30, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts = {"trials": trials, "ended_well": 0, "equal": 0, "slowest_end_seconds": 0.0}
    os.environ["STEP_SECONDS"] = "0.03"
    with scratch() as base:
        assert Launch(2, options(base / "whole")).wait() == 0
        expected = fingerprint(base / "whole")
        for trial in range(trials):
            folder = base / f"trial{trial}"
            launch = Launch(2, options(folder), restarts=3)
            launch.until(folder, pick.choice([1, 5, 10, 20]) if trial % 5 else 0)
            time.sleep(pick.uniform(0, 0.3))
            ranks = launch.ranks
            if ranks:
                os.kill(pick.choice(ranks), signal.SIGKILL)
                killed = time.monotonic()
                while (
                    any(os.path.exists(f"/proc/{pid}") for pid in ranks)
                    and time.monotonic() < killed + 90
                ):
                    time.sleep(0.02)
                counts["slowest_end_seconds"] = round(
                    max(counts["slowest_end_seconds"], time.monotonic() - killed), 1
                )
            counts["ended_well"] += launch.wait() == 0
            counts["equal"] += fingerprint(folder) == expected
    return counts


if __name__ == "__main__":
    script("13 a rank killed, restarts", run, 30)
