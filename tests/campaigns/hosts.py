"""Two hosts, made of network namespaces: a run of both, one cut off, the other ends in 60 s, and
the run goes on.

Needs root and `ip`. Each host has an address of its own on a virtual cable between them.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from launch import RANK
from rig import ROOT, fingerprint, options, scratch, script

HOSTS = {"mgt-a": "10.201.77.1", "mgt-b": "10.201.77.2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def cable() -> None:
    first, second = HOSTS
    for host in HOSTS:
        ip("netns", "add", host)
    ip(
        "link",
        "add",
        "mgt-0",
        "netns",
        first,
        "type",
        "veth",
        "peer",
        "name",
        "mgt-1",
        "netns",
        second,
    )
    for number, (host, address) in enumerate(HOSTS.items()):
        ip("-n", host, "addr", "add", f"{address}/24", "dev", f"mgt-{number}")
        ip("-n", host, "link", "set", f"mgt-{number}", "up")
        ip("-n", host, "link", "set", "lo", "up")


def host(number: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    """Start torchrun on one host."""
    name = list(HOSTS)[number]
    command = [
        "ip",
        "netns",
        "exec",
        name,
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
    ]
    command += [
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"{HOSTS['mgt-a']}:{port}",
    ]
    command += ["--rdzv-id", str(port), "--local-addr", HOSTS[name]]
    command += ["--rdzv-conf", f"is_host={1 - number}", str(RANK), *arguments]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": f"mgt-{number}",
        "STEP_SECONDS": "0.2",
    }
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(RANK.parent)])}
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=output, stderr=output, text=True, start_new_session=True
    )
    process.output = output  # type: ignore[attr-defined]
    return process


def text(process: Any) -> str:
    process.output.seek(0)
    return process.output.read()


def run(trials: int = 1, seed: int = 1) -> dict[str, Any]:
    counts: dict[str, Any] = dict.fromkeys(("trained", "readable_error", "went_on", "equal"), 0)
    counts |= {"trials": trials, "slowest_end_seconds": 0.0}
    cable()
    try:
        with scratch() as base:
            both = [host(number, 29600, options(base / "whole")) for number in (0, 1)]
            counts["trained"] += [process.wait(180) for process in both] == [0, 0]
            if not counts["trained"]:
                raise RuntimeError(text(both[0]) + text(both[1]))
            expected = fingerprint(base / "whole")
            for trial in range(trials):
                folder = base / f"trial{trial}"
                both = [host(number, 29700 + 2 * trial, options(folder)) for number in (0, 1)]
                while not list(Path(folder).glob("*/tiny/checkpoints/step-*.pt")):
                    time.sleep(0.1)
                ip("-n", "mgt-b", "link", "set", "mgt-1", "down")
                cut = time.monotonic()
                both[0].wait(120)
                seconds = time.monotonic() - cut
                counts["slowest_end_seconds"] = round(
                    max(counts["slowest_end_seconds"], seconds), 1
                )
                counts["readable_error"] += (
                    "another rank has ended or cannot be reached" in text(both[0]) and seconds < 60
                )
                os.killpg(
                    both[1].pid, signal.SIGKILL
                )  # it still looks for the other: a scheduler would end it
                both[1].wait()
                ip("-n", "mgt-b", "link", "set", "mgt-1", "up")
                both = [
                    host(number, 29701 + 2 * trial, options(folder, "--continue"))
                    for number in (0, 1)
                ]
                counts["went_on"] += [process.wait(180) for process in both] == [0, 0]
                counts["equal"] += fingerprint(folder) == expected
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)
    return counts


if __name__ == "__main__":
    script("two hosts, one cut off", run, 1)
