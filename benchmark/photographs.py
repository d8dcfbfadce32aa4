"""A data set that anyone can make again from photographs: a class is a photograph, an image a part
of it.

Train and test parts are disjoint in space: training takes the left of a photograph, testing the
right, with a gap between them. Parts are of random place and size, so that the same thing is seen
at other scales. Debian's wallpapers are photographs that anyone can have:

    apt-get download gnome-backgrounds mate-backgrounds plasma-workspace-wallpapers
    for package in *.deb; do dpkg -x "$package" photos; done
    python benchmark/photographs.py --photos photos --out patches

With --mislabelled and --leaks some images get a wrong class, or lie on both sides, and
OUT/wrong.csv says which: what looks for such mistakes can be measured. The same seed gives the same
pixels.
"""

import argparse
import csv
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from base.errors import Refused, clear_errors

ENDINGS = {".jpg", ".jpeg"}
# Pixels that the shorter side of a photograph needs, and those that a longer one is shrunk to.
LEAST, MOST = 900, 2400
# Shares of the width: where training ends, and where testing begins.
TRAIN_END, TEST_START = 0.66, 0.7
# Bits of 64 that two photographs differ in at least; below that they are one, in two sizes.
MIN_APART = 12
# Share of pixels that equal their neighbour: above it a picture is drawn, not photographed.
MAX_EQUAL = 0.45
# Standard deviation of grey levels below which a part shows nothing, sky or a wall.
MIN_DEVIATION = 12.0
TRIES = 20
QUALITY = 92

Row = tuple[str, str, str]


def fingerprint(photo: Image.Image) -> np.ndarray:
    """Return (64,) bool: where a photograph grows brighter from left to right, on an 8 x 8 grid."""
    grey = np.asarray(photo.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return (grey[:, 1:] > grey[:, :-1]).ravel()


def open_photographs(folder: Path, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield the first `count` different photographs below a folder, by path, with short names.

    Raises Refused where there are fewer.
    """
    seen: list[np.ndarray] = []
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS]
    for path in paths:
        with Image.open(path) as file:
            if min(file.size) < LEAST or file.width < file.height:
                continue
            file.draft("RGB", (MOST, MOST))
            photo = file.convert("RGB")
        photo.thumbnail((MOST, MOST))
        own = fingerprint(photo)
        grey = np.asarray(photo.convert("L").resize((256, 256)))
        drawn = (grey[:, 1:] == grey[:, :-1]).mean() > MAX_EQUAL
        if drawn or any((own != other).sum() < MIN_APART for other in seen):
            continue
        seen.append(own)
        yield f"{len(seen):02d}", photo
        if len(seen) == count:
            return
    raise Refused(f"{folder} has {len(seen)} different photographs, not {count}: lower --classes")


def part_of(
    photo: Image.Image, start: float, end: float, side: int, pick: random.Random
) -> Image.Image:
    """Return a square part between two shares of the width, `side` x `side` pixels."""
    left, right = int(start * photo.width), int(end * photo.width)
    largest = min(right - left, photo.height, 3 * side)
    for _ in range(TRIES):
        size = round(pick.uniform(min(side, largest), largest))
        x, y = pick.randint(left, right - size), pick.randint(0, photo.height - size)
        box = (x, y, x + size, y + size)
        part = photo.resize((side, side), Image.Resampling.BICUBIC, box=box)
        if np.asarray(part.convert("L")).std() >= MIN_DEVIATION:
            break
    return part


def make(arguments: argparse.Namespace) -> dict[str, int]:
    """Write the images of all classes; return how many each side has."""
    counts = {"train": arguments.train, "val": arguments.val}
    spans = {"train": (0.0, TRAIN_END), "val": (TEST_START, 1.0)}
    for name, photo in open_photographs(arguments.photos, arguments.classes):
        for side, count in counts.items():
            pick = random.Random(f"{arguments.seed} {name} {side}")
            folder = arguments.out / side / f"photo {name}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                part = part_of(photo, *spans[side], arguments.side, pick)
                part.save(folder / f"{side}-{name}-{number:04d}.jpg", quality=QUALITY)
    return {side: count * arguments.classes for side, count in counts.items()}


def spoil(arguments: argparse.Namespace) -> list[Row]:
    """Move some training images to wrong classes and copy some test images into training."""
    pick = random.Random(f"{arguments.seed} spoilt")
    rows = []
    classes = sorted(path.name for path in (arguments.out / "train").iterdir())
    files = sorted((arguments.out / "train").glob("*/*.jpg"))
    for path in pick.sample(files, arguments.mislabelled):
        wrong = pick.choice([name for name in classes if name != path.parent.name])
        target = path.parent.with_name(wrong) / path.name
        path.rename(target)
        rows.append((str(target.relative_to(arguments.out)), "mislabelled", path.parent.name))
    for path in pick.sample(sorted((arguments.out / "val").glob("*/*.jpg")), arguments.leaks):
        target = arguments.out / "train" / path.parent.name / f"again-{path.name}"
        target.write_bytes(path.read_bytes())
        rows.append((str(target.relative_to(arguments.out)), "leak", path.parent.name))
    return rows


def main(argv: list[str] | None = None) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the data set")
    parser.add_argument("--classes", type=int, default=20, help="photographs (default: 20)")
    parser.add_argument("--train", type=int, default=100, help="images a class (default: 100)")
    parser.add_argument("--val", type=int, default=25, help="test images a class (default: 25)")
    parser.add_argument("--side", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--mislabelled", type=int, default=0, help="training images (default: 0)")
    parser.add_argument("--leaks", type=int, default=0, help="test images (default: 0)")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    arguments = parser.parse_args(argv)

    with clear_errors({}):
        if arguments.out.exists():
            raise Refused(f"{arguments.out} exists: name a new folder with --out")
        counts = make(arguments)
        rows = spoil(arguments)
        if rows:
            with open(arguments.out / "wrong.csv", "w", newline="") as file:
                csv.writer(file).writerows([("path", "kind", "class"), *rows])
    told = ", ".join(f"{count} in {side}/" for side, count in counts.items())
    print(f"{arguments.classes} classes, {told}; {len(rows)} images spoilt: {arguments.out}")


if __name__ == "__main__":
    main()
