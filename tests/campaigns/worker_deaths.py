"""Kill, or stop for good, one of the processes that read images: a named error in time, a
checkpoint, nothing left over.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import (
    Child,
    batches_in_shared_memory,
    checkpoint,
    fingerprint,
    finish,
    image_options,
    make_images,
    readers,
    run_folder,
    scratch,
    script,
    there_after,
)

# Seconds to the error after a kill; --timeout of those in which a process is stopped: where cores
# are busy, workers take some seconds to start.
SOON, TIMEOUT = 1.0, 8


def run(trials: int = 120, seed: int = 1) -> dict[str, Any]:
    """Stop a process in every sixth trial, kill one in the others."""
    pick = random.Random(seed)
    counts = dict.fromkeys(
        ("trials", "killed", "stopped", "named_in_time", "saved", "equal", "orphans"), 0
    )
    slowest = {"killed": 0.0, "stopped": 0.0}
    shared = batches_in_shared_memory()
    with scratch() as base:
        images = make_images(base / "images")
        more = [
            "--nThreads",
            "2",
            "--nEpochs",
            "6",
            "--saveEvery",
            "10000",
            "--timeout",
            str(TIMEOUT),
        ]
        finish([*image_options(base / "whole", images), *more])
        expected = fingerprint(base / "whole")
        for trial in range(trials):
            how = "stopped" if trial % 6 == 5 else "killed"
            folder = base / f"trial{trial}"
            child = Child([*image_options(folder, images), *more])
            until = pick.randrange(3, 20)
            while child.alive() and child.steps < until:
                time.sleep(0.001)
            found = readers(child.pid)
            victim = pick.choice(found)
            os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            started = time.monotonic()
            status = child.wait(60)
            took = time.monotonic() - started
            counts["trials"] += 1
            counts[how] += 1
            slowest[how] = max(slowest[how], took)
            text = child.text()
            named = "a loader worker died or stopped responding" in text and "Traceback" not in text
            counts["named_in_time"] += (
                status == 1 and named and took < (SOON if how == "killed" else TIMEOUT + 2)
            )
            if status != 1 or not named or (took > SOON and how == "killed"):
                print(
                    f"trial {trial}, {how}: {took:.2f} s, status {status}: {text[-1500:]}",
                    flush=True,
                )
            newest = checkpoint.newest(run_folder(folder) / "checkpoints")
            counts["saved"] += newest is not None and newest.progress.step >= until - 1
            counts["orphans"] += sum(there_after(2, pid) for pid in found)
            if trial % 6 == 0:  # the run that goes on is the one that was not hurt
                finish([*image_options(folder, images), *more, "--continue"])
                counts["equal"] += fingerprint(folder) == expected
    counts["left_in_shared_memory"] = len(batches_in_shared_memory() - shared)
    return counts | {f"slowest_{how}_seconds": round(took, 2) for how, took in slowest.items()}


if __name__ == "__main__":
    script("6 lost workers", run, 120)
