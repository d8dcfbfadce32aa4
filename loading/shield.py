"""Shields the server that workers are forked from; importing it does that.

A signal to the whole group is the main process's to answer. A server that a SIGTERM ended would
leave the next pass waiting for workers that never come. It goes when the main process does. What
it cannot start, or hand over to a worker, the main process reports.
"""

import os
import signal
import sys

from base.errors import STOPPING
from loading.deaths import print_unless_told

# Workers, forked from it, look whether it is still their parent.
SERVER = os.getpid()

for _number in (*STOPPING, signal.SIGUSR1):
    signal.signal(_number, signal.SIG_IGN)

sys.excepthook = print_unless_told
