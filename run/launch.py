"""Starts one rank a GPU by torch's own launcher, as `torchrun --standalone` does."""

import os
import sys
from pathlib import Path


def is_rank() -> bool:
    """True in a process that a launcher has started."""
    return bool(os.environ.get("RANK") and os.environ.get("WORLD_SIZE"))


def start_ranks(count: int, script: str, arguments: list[str]) -> None:
    """Become the launcher of `count` ranks of the script; never returns.

    Signals, restarts and the exit status are the launcher's from here on.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    # It hands these on to the ranks; any other would end it and leave them behind.
    names = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2,SIGXCPU"
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", names)
    command = [sys.executable, *launcher, str(Path(script).resolve()), *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)
