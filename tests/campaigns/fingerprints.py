"""Two checkouts of this suite train the same bits: `python tests/campaigns/fingerprints.py OLD
NEW`.

Seven short runs, each in both checkouts on this machine: MNIST, a folder with resizedcrop and two
workers, synthetic images with averaged weights and accumulation, arrays of CIFAR's form with mixup,
two gloo ranks, and a resumed run. Compared are the SHA-256 of the final weights and the log without
its clocks. No hash is kept: other machines and versions of torch give others.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CLOCKS = {
    *("seconds", "data_seconds", "compute_seconds", "test_seconds"),
    *("images_per_second", "peak_memory_bytes"),
}
SIZES = "--imageSize 36 --cropSize 32 --batchSize 32 --nEpochs 2"
SYNTHETIC = f"--dataset synthetic --synthetic 320:5:40 {SIZES}"
CIFAR = "--dataset synthetic --synthetic 512:10:32 --imageSize 32 --cropSize 32 --batchSize 64"
RUNS = {
    "mnist": "--dataset mnist --nEpochs 1 --limit 2560",
    "folder": "--dataset folder --data_dir {images} --imageSize 40 --cropSize 32 --batchSize 16 "
    "--nEpochs 2 --augment resizedcrop,flip,jitter --nThreads 2",
    "synthetic": f"{SYNTHETIC} --ema 0.99 --accumulate 2 --augment crop,flip,erase",
    "cifar": f"{CIFAR} --nEpochs 1 --augment pad:4,crop,flip,mixup",
    "ranks": f"{SYNTHETIC} --netType squeezenet",
    "resumed": f"{SYNTHETIC} --saveEvery 1",
    "handed over": f"{SYNTHETIC} --saveEvery 1",
}
COMMON = "--GPU -1 --logger none"


def run(checkout: Path, name: str, text: str, folder: Path, started_by: Path) -> str:
    """Run one of them and return its fingerprint. started_by: the checkout that begins what is
    resumed.
    """
    options = [*text.split(), *COMMON.split(), "--expDir", str(folder), "--expID", name]
    launcher = [sys.executable]
    if name == "ranks":
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, str(checkout / "main.py"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if name in ("resumed", "handed over"):
        first = started_by if name == "handed over" else checkout
        begun = [*launcher, str(first / "main.py"), *options]
        stop_after_some_steps(begun, environment, folder, name)
        command.append("--continue")
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=folder)
    return fingerprint(next(folder.glob(f"*/{name}")))


def stop_after_some_steps(
    command: list[str], environment: dict[str, str], folder: Path, name: str
) -> None:
    """Start a run and stop it by SIGTERM once it has saved something."""
    child = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while child.poll() is None and not list(folder.glob(f"*/{name}/checkpoints/step-*.pt")):
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    child.wait()


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the newest checkpoint's weights, and of the log without its clocks."""
    newest = max(folder.glob("checkpoints/step-*.pt"), key=lambda path: int(path.stem[5:]))
    value = torch.load(newest, map_location="cpu", weights_only=True)
    digest = hashlib.sha256()
    for part in ("network", "updater"):
        feed(digest, value[part], part)
    for line in (folder / "log.jsonl").read_text().splitlines():
        record = {key: v for key, v in json.loads(line).items() if key not in CLOCKS}
        digest.update(json.dumps(record, sort_keys=True).encode())
    digest.update((folder / "full_train.log").read_bytes())
    return digest.hexdigest()


def feed(digest: Any, value: Any, name: str) -> None:
    """Add nested values to a digest: names, shapes and the bytes of tensors."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            feed(digest, value[key], f"{name}/{key}")
    else:
        digest.update(f"{name} {value!r}".encode())


def make_images(folder: Path) -> Path:
    """Write 60 JPEG files of three classes and different sizes."""
    noise = np.random.default_rng(7)
    for part, count in (("train", 48), ("val", 12)):
        for number in range(count):
            shape = (int(noise.integers(40, 90)), int(noise.integers(40, 90)), 3)
            path = folder / part / f"class {number % 3}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 255, shape, np.uint8)).save(path, quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    differ = []
    old = arguments.checkouts[0].resolve()
    with tempfile.TemporaryDirectory() as scratch:
        images = make_images(Path(scratch, "images"))
        for name in arguments.only:
            found = []
            for number, checkout in enumerate(arguments.checkouts):
                folder = Path(scratch, f"{name}-{number}")
                folder.mkdir()
                text = RUNS[name].format(images=images)
                found.append(run(checkout.resolve(), name, text, folder, old))
            same = found[0] == found[1]
            differ += [] if same else [name]
            print(
                f"{name}: {found[0][:16]} {found[1][:16]} {'same' if same else 'DIFFER'}",
                flush=True,
            )
    sys.exit(f"{', '.join(differ)} differ" if differ else 0)


if __name__ == "__main__":
    main()
