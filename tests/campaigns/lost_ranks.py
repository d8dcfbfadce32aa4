"""Kill a rank for good: the others end in time with a readable line, none is left over.

The run that goes on from there ends with the weights of the one that nobody disturbed.
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

SECONDS = 60.0  # to the end of all ranks


def run(trials: int = 30, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts: dict[str, Any] = dict.fromkeys(
        ("trials", "ended_in_time", "readable", "equal", "orphans"), 0
    )
    counts["slowest_end_seconds"] = 0.0
    os.environ["STEP_SECONDS"] = "0.03"
    with scratch() as base:
        assert Launch(2, options(base / "whole")).wait() == 0
        expected = fingerprint(base / "whole")
        for trial in range(trials):
            folder = base / f"trial{trial}"
            launch = Launch(2, options(folder))
            launch.until(folder, pick.choice([0, 5, 10, 20]))
            time.sleep(pick.uniform(0, 0.3))
            ranks = launch.ranks
            os.kill(pick.choice(ranks), signal.SIGKILL)
            killed = time.monotonic()
            status = launch.wait()
            seconds = time.monotonic() - killed
            counts["trials"] += 1
            counts["slowest_end_seconds"] = round(max(counts["slowest_end_seconds"], seconds), 1)
            counts["ended_in_time"] += status == 1 and seconds < SECONDS
            counts["orphans"] += sum(Path(f"/proc/{pid}").exists() for pid in ranks)
            text = launch.text()
            readable = (
                "another rank has ended or cannot be reached" in text
                or "stopped by SIGTERM" in text
            )
            counts["readable"] += readable
            if status != 1 or not readable:
                print(
                    f"trial {trial}: status {status}, {seconds:.1f} s: {text[-3000:]}", flush=True
                )
            assert Launch(2, options(folder, "--continue")).wait() == 0
            counts["equal"] += fingerprint(folder) == expected
    return counts


if __name__ == "__main__":
    script("6 a rank killed for good", run, 30)
