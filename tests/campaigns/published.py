"""torchvision's published weights, tested by main.py on ImageNet's validation images: the published
top-1 of every network of ours that has the same weights.

    python tests/campaigns/published.py --data_dir D --weights ~/.cache/torch/hub/checkpoints

Files that are not in the folder of weights are passed over and named.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torchvision
from rig import ROOT, scratch

from models import OURS

# Percent that a test may differ by: decoders and filters differ in their roundings.
CLOSE = 0.1


@dataclass(frozen=True)
class Twin:
    """A network of ours and torchvision's file of weights. top1: published, percent; sizes and
    filter: of its published test.
    """

    name: str
    file: str
    top1: float
    image_size: int
    crop_size: int
    interpolation: str


def twins() -> list[Twin]:
    """Return our networks that have published weights, with what torchvision says of them."""
    found = []
    for name, entry in OURS.items():
        if not entry.torchvision_name:
            continue
        weights = torchvision.models.get_model_weights(entry.torchvision_name)["IMAGENET1K_V1"]
        test = weights.transforms()
        top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        sizes = test.resize_size[0], test.crop_size[0]
        found.append(
            Twin(name, os.path.basename(weights.url), top1, *sizes, test.interpolation.value)
        )
    return found


def measured(twin: Twin, weights: Path, data_dir: Path, more: list[str]) -> float:
    """Return the top-1 that main.py measures, percent."""
    with scratch() as folder:
        command = [sys.executable, str(ROOT / "main.py"), "--test", "--netType", twin.name]
        command += ["--retrain", str(weights / twin.file), "--data_dir", str(data_dir)]
        command += ["--imageSize", str(twin.image_size), "--cropSize", str(twin.crop_size)]
        command += ["--interpolation", twin.interpolation, "--expDir", str(folder), *more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).rglob("test.json")
        return float(json.loads(path.read_text())["test_top1"])


def run(data_dir: Path, weights: Path, *more: str, expected: dict[str, float] | None = None) -> Any:
    """Test every twin whose file is there.

    more: options of main.py; expected: top-1 by name, where it is not the published one.
    """
    result: dict[str, Any] = {"equal": 0, "tested": {}, "absent": []}
    for twin in twins():
        if not (weights / twin.file).exists():
            result["absent"].append(twin.name)
            continue
        wanted = (expected or {}).get(twin.name, twin.top1)
        found = measured(twin, weights, data_dir, list(more))
        result["tested"][twin.name] = {"measured": found, "published": wanted}
        result["equal"] += abs(found - wanted) <= CLOSE
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="ILSVRC2012")
    parser.add_argument("--weights", type=Path, required=True, help="folder of torchvision's files")
    arguments, more = parser.parse_known_args()
    result = run(arguments.data_dir, arguments.weights.expanduser(), *more)
    print(json.dumps(result, indent=1))
    sys.exit(result["equal"] < len(result["tested"]))
