"""main.py, which here knows the campaigns' tiny network; a step takes a little longer, so that
there is time to disturb it.
"""

import os
import sys
import time

import rig

import main
import opts
from base.errors import clear_errors
from run.run import Run

after_step = Run.after_step


def slower(self: Run, sums: object) -> None:
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    after_step(self, sums)  # type: ignore[arg-type]


if __name__ == "__main__":
    assert rig.NETWORKS["tiny"]
    Run.after_step = slower  # type: ignore[method-assign]
    with clear_errors(opts.WAYS_OUT):
        main.main(sys.argv[1:])
