"""Runs main.py on fake GPUs and reports: `child.py CASES.json OUT.json`, with the stand-in
preloaded.

A case is main.py's options. Its report: the error that ended it, lines of ours that waited for the
device in steps 3 to 5, what a step gave the device to do, and how many host-to-device copies it
made.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import counters
import torch

import main
from run.run import Run

FIRST, LAST = 2, 5  # steps between which is measured: caches are filled by then
BASE = "--dataset synthetic --synthetic 200:6:64 --imageSize 64 --cropSize 56 --batchSize 32"
COMMON = f"{BASE} --nEpochs 1 --logger none --GPU 0"


class Watcher:
    """Looks at the steps of one run."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.readings: list[dict[str, counters.Count]] = []
        self.waits: set[str] = set()

    def after_step(self, run: Run, sums: Any) -> None:
        """Count the step as Run does, and begin or end what is watched."""
        ORIGINAL(run, sums)
        if run.progress.step == FIRST:
            torch.cuda.set_sync_debug_mode("warn" if self.strict else "default")
        if run.progress.step in (FIRST, LAST):
            self.readings.append(counters.counts())
        if run.progress.step == LAST:
            torch.cuda.set_sync_debug_mode("default")

    def shown(self, message: Any, *_: Any, **__: Any) -> None:
        """Take a warning: torch's own of a wait names nobody, the stack does."""
        if "synchronizing" in str(message):
            ours = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))]
            ours = [f for f in ours if f.name != "shown"]
            if Path(ours[-1].filename) == Path(__file__):
                return  # what the watching itself does
            self.waits.add(f"{os.path.relpath(ours[-1].filename, ROOT)}:{ours[-1].lineno}")


ORIGINAL = Run.after_step


def report(text: str) -> dict[str, Any]:
    """Run one case."""
    watcher = Watcher(strict="--verbose" not in text)
    error = ""
    # A method of Run: the lambda gets the run as its first argument.
    patched = mock.patch.object(Run, "after_step", lambda run, sums: watcher.after_step(run, sums))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(patched)
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        warnings.simplefilter("always")
        warnings.showwarning = watcher.shown
        try:
            main.main([*COMMON.split(), "--expDir", folder, *text.split()])
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"[-400:]
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.enabled = True
    found: dict[str, Any] = {"error": error, "waits": sorted(watcher.waits)}
    if len(watcher.readings) == 2:
        before, after = watcher.readings
        steps = LAST - FIRST
        found["operations"] = counters.operations(before, after) / steps
        for kind in ("h2d_pinned", "h2d_pageable"):
            found[kind] = (after[kind].calls - before[kind].calls) / steps
    return found


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps({name: report(text) for name, text in cases.items()}))
