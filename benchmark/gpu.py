"""The first ten minutes on a GPU: `python benchmark/gpu.py`.

Writes benchmark/results/gpu.json and a table.

Parts, each in a process of its own, so that one that fails leaves the others: the tests marked gpu;
every augmentation on the GPU beside the CPU; the same bits again with --deterministic, network by
network; a step that is not finite; images a second of each network beside its bare self and
torchvision's loop; loading from files; DataParallel and ranks, where there are two GPUs. --small
uses tiny sizes, --cpu the CPU: so it is known to work before a GPU is there.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import augmentation
from augmentation import AUGMENTATIONS, MIX, WINDOW
from base.text import print_table
from benchmark import timing
from models import OURS
from transforms import Pipeline

RESULTS = ROOT / "benchmark" / "results" / "gpu.json"
LIMIT = 1800  # seconds a part may take
NETWORKS = (*OURS, "resnet18", "resnet50")
Figures = dict[str, Any]


def run(*command: object, limit: float = LIMIT) -> str:
    """Run a command from the clone and return what it printed.

    Raises RuntimeError with its last lines.
    """
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"status {result.returncode}: {' | '.join(said)}")
    return result.stdout


def device_options(arguments: argparse.Namespace) -> list[str]:
    return ["--GPU", "-1" if arguments.cpu else "0"]


def tests(arguments: argparse.Namespace) -> Figures:
    """Run the tests that need a GPU."""
    if arguments.cpu:
        return {"skipped": "on the CPU"}
    said = run(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=line")
    return {"result": said.strip().splitlines()[-1]}


def parity(arguments: argparse.Namespace) -> Figures:
    """Compare each augmentation on the GPU with the CPU, in grey levels."""
    device = torch.device("cpu" if arguments.cpu else "cuda")
    count, side = (8, 32) if arguments.small else (64, 224)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    figures = {}
    for name, entry in AUGMENTATIONS.items():
        if not WINDOW < entry.stage < MIX:
            continue
        pipeline = Pipeline(augmentation.parse(name), side, side, seed=3)
        draws = pipeline.draw_uniforms(0, np.arange(count))
        here = pipeline.apply_steps(images, draws)
        there = pipeline.apply_steps(images.to(device), draws).cpu()
        off = (here.float() - there.float()).abs()
        figures[name] = {"mean": off.mean().item(), "worst": off.max().item()}
    return figures


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a run's newest weights."""
    value = torch.load(next(folder.glob("*/*/best.pt")), map_location="cpu", weights_only=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(value["network"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def determinism(arguments: argparse.Namespace) -> Figures:
    """Train each network twice with --deterministic: are the bits the same?"""
    size = 64 if arguments.small else 224
    common = ["--dataset", "synthetic", "--synthetic", f"48:4:{size}", "--imageSize", size]
    common += ["--cropSize", size, "--batchSize", 16, "--nEpochs", 1, "--logger", "none"]
    common += ["--deterministic", *device_options(arguments)]
    figures: Figures = {}
    for name in arguments.netType:
        found = []
        try:
            for _ in range(2):
                with tempfile.TemporaryDirectory() as folder:
                    more = ["--netType", name, "--expDir", folder]
                    run(sys.executable, "main.py", *common, *more)
                    found.append(fingerprint(Path(folder)))
            figures[name] = found[0] == found[1]
        except (RuntimeError, StopIteration, subprocess.TimeoutExpired) as error:
            figures[name] = str(error) or "no weights"
    return figures


def non_finite(arguments: argparse.Namespace) -> Figures:
    """Poison the gradient of one step: do weights, averages, momentum and statistics stay?"""
    import model
    from training.metrics import Criterion
    from training.ranks import Ranks
    from training.schedule import make_schedule
    from training.updater import Updater, make_optimizer

    device = torch.device("cpu" if arguments.cpu else "cuda")
    network = model.create("alexnetbn", 4, 64).to(device).train()
    schedule = make_schedule(lr=0.1, weight_decay=0.0, first=0.1)
    updater = Updater(network, make_optimizer(network), schedule, Ranks(), average=0.9)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, device=device)
    labels = torch.arange(8, device=device) % 4
    kept = False

    def state() -> list[torch.Tensor]:
        """Return weights, averaged weights and statistics, and momentum."""
        moments = updater.optimizer.state.values()
        return [
            *(parameter.detach() for parameter in network.parameters()),
            *updater.network_for_eval.state_dict().values(),
            *(value for held in moments for value in held.values() if value is not None),
        ]

    for step, poison in enumerate((1.0, float("nan"), 1.0)):
        updater.begin(0)
        loss = Criterion()(network(images, heads=True), labels) / 8 * poison
        # `begin` has kept the running statistics of before the forward pass.
        before = [value.clone() for value in [*updater.before, *state()]]
        updater.backward(loss)
        updater.apply(loss, step, np.arange(8))
        if math.isnan(poison):
            after = [*updater.buffers, *state()]
            kept = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    updater.settle()
    return {"weights_kept": kept, "skipped": updater.skipped}


def rates(arguments: argparse.Namespace) -> Figures:
    """Measure whole steps of each network beside its bare self."""
    figures: Figures = {}
    for batch in (4,) if arguments.small else (128, 512):
        for name in arguments.netType:
            options = ["--netType", name, "--batchSize", batch]
            if arguments.small:
                options += ["--steps", 2, "--repetitions", 1, "--imageSize", 72, "--cropSize", 64]
            if arguments.cpu:
                options += ["--cpu"]
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                try:
                    run(sys.executable, "benchmark/steps.py", *options, "--json", file.name)
                    result = json.loads(Path(file.name).read_text())["networks"][name]
                    figures[f"{name} {batch}"] = {
                        way: round(own["images_per_second"], 1)
                        for way, own in result["figures"].items()
                    } | {"peak_MiB": result["peak_memory_bytes"] >> 20}
                except (RuntimeError, subprocess.TimeoutExpired, ValueError) as error:
                    figures[f"{name} {batch}"] = str(error)
    return figures


def loading(arguments: argparse.Namespace) -> Figures:
    """Measure loading from files, made-up ones unless --data_dir."""
    options = ["--data_dir", arguments.data_dir] if arguments.data_dir else []
    if arguments.small:
        options += ["--nThreads", 1, "--repetitions", 1]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        run(sys.executable, "benchmark/imagenet.py", *options, "--json", file.name)
        return json.loads(Path(file.name).read_text())


def together(arguments: argparse.Namespace) -> Figures:
    """Train on two GPUs by threads and by ranks, and compare with one."""
    gpus = 0 if arguments.cpu else torch.cuda.device_count()
    if gpus < 2 and not arguments.cpu:
        return {"skipped": "one GPU"}
    size = 64 if arguments.small else 224
    count = 256 if arguments.small else 8192
    common = ["--dataset", "synthetic", "--synthetic", f"{count}:10:{size}", "--imageSize", size]
    common += ["--cropSize", size, "--batchSize", 64 if arguments.small else 256, "--nEpochs", 2]
    common += ["--logger", "none", *device_options(arguments)]
    ways = {"one": [], "ranks": ["--nGPU", 2, "--parallel", "ranks"]}
    if not arguments.cpu:
        ways["threads"] = ["--nGPU", 2]
    figures: Figures = {}
    for way, more in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            run(sys.executable, "main.py", *common, *more, "--expDir", folder)
            log = next(Path(folder).glob("*/*/log.jsonl")).read_text().splitlines()
            figures[way] = round(json.loads(log[-1])["images_per_second"], 1)
    return figures


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "tests": tests,
    "parity": parity,
    "determinism": determinism,
    "non_finite": non_finite,
    "rates": rates,
    "loading": loading,
    "together": together,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--netType", nargs="+", default=list(NETWORKS))
    parser.add_argument("--data_dir", help="folder of images (default: made-up files)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--cpu", action="store_true", help="on the CPU")
    parser.add_argument("--json", default=str(RESULTS), help="file for the figures")
    arguments = parser.parse_args()

    found: Figures = {}
    rows = [["part", "seconds", "result"]]
    for name in arguments.parts:
        started = time.monotonic()
        try:
            found[name] = PARTS[name](arguments)
            outcome = "done"
        except Exception as error:  # the other parts go on: this one says what happened
            outcome = f"failed: {error}"
            found[name] = {"failed": str(error), "traceback": traceback.format_exc()[-2000:]}
        rows.append([name, f"{time.monotonic() - started:.0f}", outcome[:100]])
        timing.write(arguments.json, found)
    print_table(rows)
    print(f"figures: {arguments.json}")
    sys.exit(1 if any("failed" in row[2] for row in rows) else 0)


if __name__ == "__main__":
    main()
