"""Kill -9 a run at random instants, also inside a save and while it resumes: the final weights must
not show it.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import Child, checkpoint, fingerprint, finish, options, run_folder, scratch, script

INTERVAL = 5  # steps between saves, as rig.OPTIONS has it


def kill_in_save(child: Child, folder: Path, wanted: int) -> bool:
    """Kill the child while its `wanted`-th temporary checkpoint lies there.

    False if it ended before.
    """
    seen: set[str] = set()
    while child.alive():
        for path in folder.glob("*/tiny/checkpoints/.*.tmp"):
            seen.add(path.name)
            if len(seen) >= wanted:
                child.kill()
                child.wait()
                return child.status == -9
    return False


def kill_after(child: Child, seconds: float) -> bool:
    """Kill the child `seconds` after its start. False if it ended before."""
    while child.alive() and time.monotonic() < child.started + seconds:
        time.sleep(0.0005)
    child.kill()
    child.wait()
    return child.status == -9


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint that verifies, 0 where there is none."""
    found = (
        checkpoint.newest(run_folder(folder) / "checkpoints")
        if list(folder.glob("*/tiny"))
        else None
    )
    return 0 if found is None else found.progress.step


def run(trials: int = 200, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    equal = killed = in_save = resuming = most_lost = lost_saves = 0
    with scratch() as base:
        started = time.monotonic()
        finish(options(base / "whole"))
        whole = time.monotonic() - started
        expected = fingerprint(base / "whole")
        for trial in range(trials):
            folder = base / f"trial{trial}"
            for again in range(1 + pick.randrange(3)):
                before = newest_step(folder)
                child = Child(options(folder, "--continue"))
                if trial % 3 == 0 and again == 0:
                    hit = kill_in_save(child, folder, 1 + pick.randrange(7))
                    in_save += hit
                else:
                    hit = kill_after(child, pick.uniform(0.02, 0.3 if again else 1) * whole)
                killed += hit
                resuming += hit and again > 0 and child.steps == 0
                if hit and child.steps:
                    most_lost = max(most_lost, child.steps - max(before, newest_step(folder)))
                    lost_saves += newest_step(folder) < child.finished_save
            finish(options(folder, "--continue"))
            equal += fingerprint(folder) == expected
    return {
        "trials": trials,
        "equal": equal,
        "killed": killed,
        "inside_a_save": in_save,
        "while_resuming": resuming,
        "most_steps_lost": most_lost,
        "interval_steps": INTERVAL,
        "finished_saves_lost": lost_saves,
    }


if __name__ == "__main__":
    script("1 kill -9", run, 200)
