"""Pack images of any kind into tar shards that the webdataset library reads, and ours by number.

Images are copied byte by byte in their order, a shard takes its name when it is whole, and what is
there of the same images stays: a run killed at any instant goes on with the next shard.
"""

import io
import json
import re
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from base.errors import Refused, reason_of
from base.files import read_text, whole_file, write_json
from base.text import printable
from datasets import changes, decode, shards
from datasets.changes import Sides
from datasets.images import FileImages
from datasets.remote import CLASSES
from preparation.sources import PARTS, Origin, names_by_class, run_with

NOTE = ".packed.json"
# As other readers know images.
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}
OWN_TEMPORARY = re.compile(
    r"\.((train|val|test|images)-\d{6,}\.tar|classes\.txt|\.packed\.json)\.\d+\.tmp"
)


def pack(origin: Origin, out: str, shard: int) -> None:
    """Write all images into out/train-000000.tar and so on; shard: bytes of one at most, where an
    image is no larger.

    Raises Refused for an image that cannot be read, and where `out` holds other shards.
    """
    target, source = Path(out), Path(origin.where).resolve()
    if source.is_dir() and (source == target.resolve() or source in target.resolve().parents):
        raise Refused(f"{out} and {origin.where} must be apart", limit="out")
    parts = origin.parts()
    classes = next(iter(parts.values())).classes
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        # What a killed run left half-written, and nothing of anyone else's.
        if OWN_TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    _refuse_other(target, origin, parts, shard)
    wrong = next((name for name in classes if name.splitlines() != [name]), None)
    if wrong is not None:
        raise Refused(f"the name of a class does not fit on a line: '{printable(wrong)}'")
    with whole_file(target / CLASSES) as file:
        file.write("".join(f"{name}\n" for name in classes))
    for part, images in parts.items():
        count = _pack_part(images, target, PARTS[part], shard)
        unlabelled = int((images.labels < 0).sum())
        more = f", {unlabelled} of them without a label" if unlabelled else ""
        print(f"{PARTS[part]}: {len(images)} images{more} in {count} shards, in {out}")
    print(f"a run: python main.py --dataset shards --data_dir {shlex.quote(out)}{run_with(parts)}")


def _refuse_other(target: Path, origin: Origin, parts: dict[str, FileImages], shard: int) -> None:
    """Raise Refused where the folder holds shards of other images, or of none that is known."""
    now = {"images": _fingerprints(parts), "shard": shard, "of": origin.where}
    note = target / NOTE
    there = sorted(path.name for path in target.iterdir() if path.suffix == ".tar")
    try:
        before = json.loads(read_text(note))
    except (OSError, ValueError, RecursionError):
        before = None
    if there and before != json.loads(json.dumps(now)):
        raise Refused(f"{target} has shards of other images ({there[0]})", limit="out")
    if before is None and any(target.iterdir()):
        first = printable(sorted(path.name for path in target.iterdir())[0])
        raise Refused(f"{target} is not empty, it has {first}", limit="out")
    write_json(note, now)


def _fingerprints(parts: dict[str, FileImages]) -> changes.Fingerprints:
    sides: Sides = dict(parts)
    return changes.fingerprints(sides)


def _pack_part(images: FileImages, target: Path, name: str, shard: int) -> int:
    """Write the shards of one part that are not there; return how many there are."""
    keys = names_by_class(images)
    done, number = 0, 0
    with tqdm(total=len(images), desc=name, unit=" images", leave=False, disable=None) as bar:
        while done < len(images):
            path = target / f"{name}-{number:06d}.tar"
            # A shard is whole where it has its name.
            if path.exists():
                count = len(shards.scan(str(path), {}).names)
                for _ in range(count):
                    next(keys)
            else:
                with whole_file(path, "wb") as file:
                    count = _write_shard(file, images, keys, done, shard)
            done += count
            number += 1
            bar.update(count)
    return number


def _write_shard(
    file: IO[bytes], images: FileImages, keys: Iterator[tuple[str, str]], first: int, most: int
) -> int:
    """Write the images from number `first` on into one shard; return how many it took."""
    size = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for index in range(first, len(images)):
            content = _read(images, index)
            label = int(images.labels[index])
            number = str(label).encode() if label >= 0 else b""
            size += _stored(len(content)) + (_stored(len(number)) if number else 0)
            if size > most and index > first:
                return index - first
            key, ending = next(keys)
            _add(archive, f"{key}.{_ending(ending, content)}", content)
            if number:
                _add(archive, f"{key}.cls", number)
    return len(images) - first


def _read(images: FileImages, index: int) -> bytes:
    try:
        return images.read(index)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot pack {printable(images.path(index))}: {reason_of(error)}") from None


def _stored(size: int) -> int:
    """Return the bytes that a file takes in a tar file."""
    block = tarfile.BLOCKSIZE
    return block + -(-size // block) * block


def _ending(ending: str, content: bytes) -> str:
    """Return an image's ending as others know it, by its content."""
    try:
        return ENDINGS[decode.kind(content)]
    except (ValueError, KeyError):  # a bad image is copied as it is
        return ending.lstrip(".") or "jpg"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # The same bytes in the same file, whenever it is made.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
