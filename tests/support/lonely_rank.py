"""One of two ranks; the first works alone, or the second falls silent, for too long."""

import os
import signal
import sys
import time
from datetime import timedelta

import torch

from training import ranks

ranks.SILENCE = timedelta(seconds=3)
ranks.PULSE = 0.2

if __name__ == "__main__":
    own = ranks.join(torch.device("cpu"), "the command")
    if sys.argv[1] == "works" and own.rank == 0:
        time.sleep(6)
    if sys.argv[1] == "stops" and own.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    total = own.sum(torch.ones(1)).item()
    ranks.leave()
    # Not by print: only the first rank's is shown.
    os.write(1, f"rank {own.rank} summed {total:g}\n".encode())
