"""Runs of several ranks for the campaigns: torchrun with scripts that use the tiny network."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rig import ROOT

RANK = Path(__file__).with_name("tiny_rank.py")


class Launch:
    """One torchrun on this machine. `ranks` are its ranks' processes while they live."""

    def __init__(
        self, ranks: int, arguments: list[str], *, restarts: int = 0, script: Path = RANK
    ) -> None:
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
        ]
        launch += [
            "--max-restarts",
            str(restarts),
            "--monitor-interval",
            "0.1",
            str(script),
            *arguments,
        ]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(RANK.parent)]),
        }
        self.process = subprocess.Popen(
            launch,
            cwd=ROOT,
            env=env,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
        )

    @property
    def ranks(self) -> list[int]:
        """Process numbers of the ranks, by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                values = path.read_bytes().split(b"\0")
                parent = int(path.with_name("stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if parent == self.process.pid:
                found |= {
                    int(value[5:]): int(path.parent.name)
                    for value in values
                    if value.startswith(b"RANK=")
                }
        return [found[rank] for rank in sorted(found)]

    def wait(self, limit: float = 180) -> int:
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise TimeoutError(self.text()) from None

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()

    def until(self, folder: Path, steps: int, limit: float = 60) -> bool:
        """Wait until the run below `folder` has written a checkpoint of so many steps; False if it
        has ended.
        """
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            done = [int(path.stem[5:]) for path in folder.glob("*/tiny/checkpoints/step-*.pt")]
            if done and max(done) >= steps:
                return True
            time.sleep(0.01)
        return False
