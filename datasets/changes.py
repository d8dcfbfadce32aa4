"""What changed among a run's images since it was last at work."""

import hashlib
import io
import os
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base.files import read_bytes, whole_file
from datasets.images import ArrayImages, FileImages, Names

# Bytes of a run's images.npz: of some 20 million images.
MAX_KEPT = 1 << 30
# Side of a split -> its images.
Sides = dict[str, ArrayImages | FileImages]
# Side -> what of its images -> a hash.
Fingerprints = dict[str, dict[str, str]]
# Of an image: its side and class, its size and time.
Facts = tuple[str, str, int, int]


def fingerprints(sides: Sides) -> Fingerprints:
    """Return a hash of each side's names and labels in their order, of its sizes, and of its times.

    Of arrays, whose pixels are at hand, sizes stands for those.
    """
    return {side: _fingerprint(images) for side, images in sides.items()}


def _fingerprint(images: ArrayImages | FileImages) -> dict[str, str]:
    classes = "\0".join(images.classes).encode("utf-8", "surrogateescape")
    labels = np.ascontiguousarray(images.labels).tobytes()
    if isinstance(images, FileImages):
        listing = _hash(classes, labels)
        if isinstance(images.names, Names):
            ends = images.names.ends.astype(np.int64).tobytes()
            listing = _hash(classes, labels, images.names.blob.tobytes(), ends)
        facts = images.facts
        return {
            "listing": listing,
            "sizes": _hash(facts.sizes.tobytes()),
            "times": _hash(facts.times.tobytes()),
        }
    shape = str(tuple(images.pixels.shape)).encode()
    pixels = shape
    if isinstance(images.pixels, torch.Tensor):
        pixels = str(zlib.crc32(images.pixels.contiguous().numpy().data)).encode()
    return {"listing": _hash(classes, labels, shape), "sizes": _hash(pixels)}


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def differences(before: Fingerprints, now: Fingerprints, path: Path, sides: Sides) -> list[str]:
    """Return what changed, as a message lists it: "3 images added", "22 with another class".

    path: where `save` left the images as they were; without it only that they changed is known.
    """
    if before == now:
        return []
    was = _load(path, before)
    if was is None:
        return [f"other images to {side} on" for side in now if before.get(side) != now[side]]
    counts = _compare(was, _facts_of(sides))
    told = [f"{count} {what}" for what, count in counts.items() if count]
    return told or ["the images in another order"]


def _compare(was: dict[str, Facts], now: dict[str, Facts]) -> Counter[str]:
    """Count what became of each image. A moved file is known by its name, size and time."""
    counts: Counter[str] = Counter()
    added = [path for path in now if path not in was]
    removed = [path for path in was if path not in now]
    moved: dict[tuple[str, int, int], list[str]] = {}
    for path in removed:
        moved.setdefault((os.path.basename(path), *was[path][2:]), []).append(path)
    unseen = (-1, -1)

    pairs = [(path, path) for path in now if path in was]
    for path in added:
        origins = moved.get((os.path.basename(path), *now[path][2:]), [])
        if origins and now[path][2:] != unseen:
            pairs.append((origins.pop(), path))
        else:
            counts["images added"] += 1
    counts["removed"] = sum(len(left) for left in moved.values())

    for old, new in pairs:
        (side, label, *facts), (new_side, new_label, *new_facts) = was[old], now[new]
        counts["with another class"] += label != new_label
        counts["on another side of the split"] += side != new_side
        counts["renamed"] += old != new and label == new_label and side == new_side
        both_seen = unseen not in (tuple(facts), tuple(new_facts))
        counts["with another size or time"] += both_seen and facts != new_facts
    return counts


def _facts_of(sides: Sides) -> dict[str, Facts]:
    """Return what is known of each image, by its path."""
    return {
        os.path.join(images.where, images.names[index]): (side, images.classes[label], size, time)
        for side, images in sides.items()
        if isinstance(images, FileImages) and images.listed
        for index, (label, size, time) in enumerate(
            zip(
                images.labels.tolist(),
                images.facts.sizes.tolist(),
                images.facts.times.tolist(),
                strict=True,
            )
        )
    }


def save(path: Path, sides: Sides, now: Fingerprints) -> None:
    """Leave the images as they are now for `differences`, unless they lie there already."""
    if not all(isinstance(images, FileImages) and images.listed for images in sides.values()):
        return
    if _fingerprint_in(path) == str(now):
        return
    arrays: dict[str, Any] = {"fingerprint": np.array(str(now))}
    for side, images in sides.items():
        assert isinstance(images, FileImages)
        names = Names([os.path.join(images.where, name) for name in images.names])
        arrays |= {f"{side} blob": names.blob, f"{side} ends": names.ends}
        arrays |= {f"{side} labels": images.labels, f"{side} classes": np.array(images.classes)}
        arrays |= {f"{side} sizes": images.facts.sizes, f"{side} times": images.facts.times}
    with whole_file(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _fingerprint_in(path: Path) -> str:
    """Return what `save` left it for, "" where that cannot be read."""
    try:
        with np.load(io.BytesIO(read_bytes(path, MAX_KEPT)), allow_pickle=False) as kept:
            return str(kept["fingerprint"])
    except Exception:  # missing, or damaged in any way: it is written anew
        return ""


def _load(path: Path, wanted: Fingerprints) -> dict[str, Facts] | None:
    """Return what `save` left, where it is of these fingerprints and can be read."""
    facts: dict[str, Facts] = {}
    try:
        with np.load(io.BytesIO(read_bytes(path, MAX_KEPT)), allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != str(wanted):
                return None
            for side in wanted:
                names = Names.of(kept[f"{side} blob"], kept[f"{side} ends"])
                classes = kept[f"{side} classes"].tolist()
                columns = [kept[f"{side} {what}"].tolist() for what in ("labels", "sizes", "times")]
                for name, label, size, time in zip(names, *columns, strict=True):
                    facts[name] = side, classes[label], size, time
    except Exception:  # missing, or damaged in any way: less can be said then
        return None
    return facts
