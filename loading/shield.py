"""Shields the server that workers are forked from; importing it does that.

A signal to the whole group is the main process's to answer. A server that a SIGTERM ended would
leave the next pass waiting for workers that never come. It goes when the main process does. What
it cannot start, or hand over to a worker, the main process reports.
"""

import signal
import sys
from types import TracebackType

from base.errors import STOPPING

for _number in (*STOPPING, signal.SIGUSR1):
    signal.signal(_number, signal.SIG_IGN)


def _print_unless_reported(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, (OSError, EOFError)):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _print_unless_reported
