"""Damage the newest checkpoint by flipped bits, cut ends and zeroed blocks: it must be named and
the one before used.
"""

import contextlib
import hashlib
import io
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import archive, checkpoint, feed, finish, options, run_folder, scratch, script

SHARES = {"flip": 1000, "truncate": 500, "zero": 200}


def damaged(whole: bytes, kind: str, pick: random.Random) -> bytes:
    if kind == "truncate":
        return whole[: pick.randrange(len(whole))]
    data = bytearray(whole)
    place = pick.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << pick.randrange(8)
    else:
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    return bytes(data)


def digest(value: Any) -> str:
    result = hashlib.sha256()
    feed(result, value)
    return result.hexdigest()


def run(trials: int = 1700, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts = {"refused_by_name": 0, "read_unchanged": 0, "silently_changed": 0, "fell_back": 0}
    kinds = [
        kind
        for kind, share in SHARES.items()
        for _ in range(max(1, trials * share // sum(SHARES.values())))
    ]
    with scratch() as base:
        finish(options(base))
        folder = run_folder(base) / "checkpoints"
        last, before = checkpoint.steps(folder)[-1], checkpoint.steps(folder)[-2]
        whole, content = last.read_bytes(), digest(archive.read(last))
        for kind in kinds:
            last.write_bytes(damaged(whole, kind, pick))
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                found = checkpoint.newest(folder)
            if (
                found is not None and found.path == last
            ):  # a bit that no content depends on, in the zip's padding
                counts[
                    "read_unchanged"
                    if digest(archive.read(last)) == content
                    else "silently_changed"
                ] += 1
                continue
            counts["refused_by_name"] += str(last) in said.getvalue()
            counts["fell_back"] += found is not None and found.path == before
    return {"trials": len(kinds), **counts}


if __name__ == "__main__":
    script("3 damaged checkpoints", run, 1700)
