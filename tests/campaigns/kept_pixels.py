"""Kept pixels against whatever happens to them: files replaced, removed and added, bits flipped and
ends cut off in the folder, decoding killed. What a run is then given is what its files hold.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import make_images, scratch, script

from base.errors import Failed, Refused
from datasets.decoded import Kept, decode_one
from datasets.folder import open_folder
from datasets.images import FileImages
from loading import decode_once
from loading.pixel_folder import PixelFolder
from transforms import Scaling

SCALING = Scaling(40, True, 1, "bilinear")


def keep(images: FileImages, where: Path) -> Kept:
    pool = np.arange(len(images))
    return PixelFolder(images, SCALING, pool, where, threads=2, skip=True).keep()


def killed(folder: Path, where: Path, seconds: float) -> None:
    """Begin to keep in a process of its own and kill that."""
    process = os.fork()
    if not process:
        decode_once.RECORD_EVERY = 0.001
        keep(open_folder(str(folder), "train"), where)
        os._exit(0)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def change_files(folder: Path, pick: random.Random) -> str:
    """Replace, spoil, touch, remove or add one of the files."""
    path = pick.choice(sorted((folder / "train").rglob("*.jpg")))
    kind = pick.choice(("replaced", "spoilt", "touched", "removed", "added"))
    if kind == "spoilt":
        path.write_bytes(path.read_bytes()[: pick.randrange(300)])
    elif kind == "touched":
        os.utime(path)
    elif kind == "removed":
        path.unlink()
    else:
        path = path if kind == "replaced" else path.with_name(f"{pick.random()}.jpg")
        size = pick.randrange(8, 90), pick.randrange(8, 90)
        Image.new("RGB", size, (pick.randrange(256),) * 3).save(path)
    return kind


def damage_folder(where: Path, pick: random.Random) -> str:
    """Flip bits in a file of the pixels' folder, or cut its end off."""
    path = pick.choice(sorted(where.glob("decoded-*/*")))
    content = bytearray(path.read_bytes())
    if not content or pick.random() < 0.3:
        del content[pick.randrange(len(content) + 1) :]
    else:
        for _ in range(pick.choice((1, 8))):
            content[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
    # Another file of that name: who has mapped the old one keeps it.
    path.unlink()
    path.write_bytes(content)
    return f"damaged {path.name if path.name[0] != '.' else 'temporary'}"


def wrong_pixels(images: FileImages, kept: Kept) -> int:
    """Return of how many images other pixels are given than their files hold."""
    everything = np.arange(len(images))
    kept.check(everything)
    wrong = 0
    for index in everything.tolist():
        try:
            wanted = decode_one(images, index, SCALING)
        except (OSError, ValueError):
            wrong += int(kept.rows["width"][index]) != 0
            continue
        given = kept.pixels(index)
        wrong += given.shape != wanted.shape or bool((given != wanted).any())
    return wrong


def run(trials: int = 1000, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts: Counter[str] = Counter()
    with scratch() as base:
        for trial in range(trials):
            folder, where = make_images(base / f"d{trial}", 12), base / f"k{trial}"
            if pick.random() < 0.5:
                killed(folder, where, pick.random() * 0.05)
                counts["killed"] += 1
            keep(open_folder(str(folder), "train"), where)
            for _ in range(pick.choice((1, 2, 3))):
                kind = pick.randrange(4)
                if kind == 0:
                    counts[damage_folder(where, pick)] += 1
                elif kind == 1:
                    killed(folder, where, pick.random() * 0.02)
                    counts["killed"] += 1
                else:
                    counts[change_files(folder, pick)] += 1
            try:
                images = open_folder(str(folder), "train")
                kept = keep(images, where)
                # After it was opened, before it is used.
                if pick.random() < 0.3:
                    counts[f"{change_files(folder, pick)} later"] += 1
                counts["wrong pixels"] += wrong_pixels(images, kept)
            except (Failed, Refused) as error:
                print(error)
                counts["refused"] += 1
    wrong, refused = counts.pop("wrong pixels"), counts.pop("refused", 0)
    return {"trials": trials, "wrong_pixels": wrong, "refused": refused, "events": counts}


if __name__ == "__main__":
    script("kept_pixels", run, 1000)
