"""Cross-validation: a run each fold, and what each said of the images that it had not seen."""

import contextlib
import json
import sys
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base.arguments import number_of
from base.errors import Refused
from base.files import read_text, whole_file, write_rows
from datasets.fold import Fold
from report import tables
from report.tables import Tested
from run.folder import RECORD, holds_run
from run.run import Run
from run.signals import Stopped
from training.metrics import confident_errors, suspected

LEFT_OUT = "left_out.npz"
TABLE = "folds.csv"
FIELDS = ("paths", "labels", "scores", "classes", "worst", "pixels")
# Images on the sheet.
SHEET = 48


def write_left_out(tested: Tested, run: Run) -> None:
    """Keep what a fold's network says of its images: paths (n,), labels (n,), scores (n, K)
    float32, classes (K,), and what is shown of the worst mistakes, (m, S, W, 3), with their rows.
    """
    if not run.ranks.first:
        return
    worst = confident_errors(tested.scores, tested.labels, SHEET).numpy()
    pixels = tested.shown(tested.indices[worst]) if len(worst) else np.empty(0, np.uint8)
    values: dict[str, Any] = {
        "paths": np.array([tested.name(row) for row in range(len(tested.labels))]),
        "labels": tested.labels.numpy(),
        "scores": tested.scores.numpy(),
        "classes": np.array(tested.classes),
        "worst": worst,
        "pixels": pixels,
    }
    with whole_file(run.folder / LEFT_OUT, "wb") as file:
        np.savez_compressed(file, **values)


@contextlib.contextmanager
def announced(fold: Fold, command: str) -> Iterator[None]:
    """Say which fold is next, and how all go on where it is stopped. Of the first rank."""
    first = number_of("RANK", 0) == 0
    if first:
        print(f"\nfold {fold}", flush=True)
    try:
        yield
    except Stopped:
        if first:
            print(f"all folds: {command}", file=sys.stderr)
        raise


def refuse_others(where: Path) -> None:
    """Raise Refused where what all folds say would be written over something else."""
    if where.exists() and not where.is_dir():
        raise Refused(f"{where} is no folder, where all folds would be written", limit="folder")
    others = any((where / name).exists() for name in ("mistakes.csv", "mistakes.png"))
    if holds_run(where) or (others and not (where / TABLE).exists()):
        raise Refused(f"{where} holds something else than folds", limit="folder")


def refuse_different(folders: Sequence[Path], may_differ: Container[str]) -> None:
    """Raise Refused where the folds' runs were trained in several ways: some are of before.

    may_differ: options.
    """
    if number_of("RANK", 0):
        return
    options = [json.loads(read_text(folder / RECORD))["options"] for folder in folders]
    for name in sorted(set.intersection(*map(set, options))):
        values = sorted({json.dumps(option[name]) for option in options})
        if len(values) > 1 and name not in may_differ:
            told = f"the folds were trained with --{name} {' and '.join(values)}"
            raise Refused(f"{told}: train all folds again with --overwrite")


def join(folders: Sequence[Path], where: Path) -> None:
    """Write folds.csv, mistakes.csv and mistakes.png of all images, and say what they hold.

    folders: of the folds' runs. Raises Refused.
    """
    if number_of("RANK", 0):
        return
    parts = [_read(folder / LEFT_OUT) for folder in folders]
    classes = parts[0]["classes"].tolist()
    if any(part["classes"].tolist() != classes for part in parts):
        raise Refused(f"the folds in {where.parent} have other classes: train them again")
    scores = torch.from_numpy(np.concatenate([part["scores"] for part in parts]))
    labels = torch.from_numpy(np.concatenate([part["labels"] for part in parts]))
    paths = np.concatenate([part["paths"] for part in parts]).tolist()
    if twice := len(paths) - len(set(paths)):
        other = f"{twice} images lie in two folds in {where.parent}: other images than before"
        raise Refused(f"{other}; train all folds again with --overwrite")

    where.mkdir(parents=True, exist_ok=True)
    top1 = [100 * float((p["scores"].argmax(1) == p["labels"]).mean()) for p in parts]
    rows = [
        [fold, len(part["labels"]), f"{value:.4f}", folder.name]
        for fold, (part, value, folder) in enumerate(zip(parts, top1, folders, strict=True), 1)
    ]
    write_rows(where / TABLE, ["fold", "images", "top1", "run"], rows)

    flags = suspected(scores, labels)
    wrong = confident_errors(scores, labels)
    mistakes = tables.mistake_rows(scores, labels, paths.__getitem__, classes)
    for row, flag in zip(mistakes, flags[wrong].tolist(), strict=True):
        row.append("yes" if flag else "")
    write_rows(where / "mistakes.csv", [*tables.MISTAKES, "confident"], mistakes)
    with contextlib.suppress(ImportError):
        _draw(parts, where / "mistakes.png")

    spread = np.std(top1, ddof=1)
    print(
        f"\n{len(parts)} folds: top-1 {np.mean(top1):.2f} +- {spread:.2f} % of images that were "
        f"left out; {len(wrong)} of {len(labels)} are taken for another class, "
        f"{int(flags.sum())} of them by confident learning's rule: {where / 'mistakes.csv'}",
        flush=True,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return what a fold left. Raises Refused."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in FIELDS}
        images, classes = found["scores"].shape
        if (images, classes) != (len(found["labels"]), len(found["classes"])):
            raise ValueError("its scores are of other images or classes")
        return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"cannot read {path} ({error}): remove it, and give --continue") from None


def _draw(parts: Sequence[dict[str, np.ndarray]], path: Path) -> None:
    """Draw the mistakes whose labels are least probable, of all folds."""
    from report import pictures

    found = []
    for part in parts:
        for row, pixels in zip(part["worst"].tolist(), part["pixels"], strict=True):
            scores, label = part["scores"][row], int(part["labels"][row])
            found.append((float(scores[label]), str(part["paths"][row]), label, scores, pixels))
    found = sorted(found, key=lambda mistake: mistake[:2])[:SHEET]
    if not found:
        path.unlink(missing_ok=True)
        return
    classes = parts[0]["classes"].tolist()
    _, paths, labels, scores, pixels = zip(*found, strict=True)
    best = [float(values.max()) for values in scores]
    said = [int(values.argmax()) for values in scores]
    titles = pictures.mistake_titles(paths, classes, labels, best, said)
    pictures.sheet(np.stack(pixels), titles, path)
