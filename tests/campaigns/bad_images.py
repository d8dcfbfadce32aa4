"""A folder with 1 % bad images: `error` names the file, `skip` counts and lists each one, testing
never takes another.
"""

import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import Child, finish, image_options, make_images, run_folder, scratch, script


def spoil(path: Path, pick: random.Random) -> None:
    """Make one image bad, in one of the ways that users meet."""
    whole = path.read_bytes()
    kind = pick.randrange(5)
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == 2:
        path.write_bytes(b"<html>404 Not Found</html>")
    elif kind == 3:
        path.unlink()
        path.symlink_to("nowhere.jpg")
    else:
        # An image of a kind that is not read.
        Image.new("RGB", (8, 8)).save(path, "PPM")


def run(trials: int = 20, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    counts = dict.fromkeys(
        ("trials", "error_names_the_file", "skip_lists_each_once", "test_counts_each"), 0
    )
    with scratch() as base:
        for trial in range(trials):
            images, folder = make_images(base / f"images{trial}", 200), base / f"trial{trial}"
            train, test = (sorted((images / part).rglob("*.jpg")) for part in ("train", "val"))
            bad = [*pick.sample(train, 2), *pick.sample(test, 1)]
            for path in bad:
                spoil(path, pick)
            options = [
                *image_options(folder, images),
                "--nEpochs",
                "2",
                "--nThreads",
                str(trial % 3),
            ]
            refused = Child([*options, "--expID", "strict"])
            status, text = refused.wait(), refused.text()
            counts["error_names_the_file"] += status == 2 and any(
                str(path) in text for path in bad[:2]
            )
            finish([*options, "--badImages", "skip"])
            with open(run_folder(folder) / "bad_images.csv", newline="") as file:
                listed = [row["path"] for row in csv.DictReader(file)]
            counts["skip_lists_each_once"] += sorted(listed) == sorted(map(str, bad))
            log = [
                json.loads(line)
                for line in (run_folder(folder) / "log.jsonl").read_text().splitlines()
            ]
            counts["test_counts_each"] += all(
                (r["train_left_out"], r["test_left_out"]) == (2, 1) for r in log
            )
            counts["trials"] += 1
    return counts


if __name__ == "__main__":
    script("8 bad images", run, 20)
