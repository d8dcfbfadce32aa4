"""Every network of ours learns 2,000 real digits: above 90 % of 2,000 test digits, in some epochs,
on one thread.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models import OURS

RESULTS = ROOT / "benchmark" / "results" / "learning.json"
# Deep networks start slowly on so few images, NiN's own rate and hidden batch norms need longer: 12
# for the others.
EPOCHS = {
    "alexnetbn": 8,
    "alexnetowt": 8,
    "alexnetowtbn": 8,
    "vgg13": 16,
    "vgg16": 24,
    "vgg19": 36,
    "ninbn": 30,
}
EPOCHS |= {"vggbn": 30, "vggbnv2": 24, "googlenet": 8, "inception2": 8, "vgg11bn": 8, "vgg13bn": 8}
EPOCHS |= {"vgg16bn": 16, "vgg19bn": 24}
OPTIONS = [
    "--dataset",
    "mnist",
    "--limit",
    "2000",
    "--batchSize",
    "32",
    "--GPU",
    "-1",
    "--snapshot",
    "0",
]

ONE_HEAD = (
    "import sys, main; from training import metrics; metrics.AUXILIARY = 0; main.main(sys.argv[1:])"
)


def learn(name: str, epochs: int, *, heads: bool = True) -> dict[str, object]:
    """Train one network; return its accuracy, its losses, and the processor's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = ["main.py"] if heads else ["-c", ONE_HEAD]
        command = [sys.executable, *start, *OPTIONS, "--netType", name, "--nEpochs", str(epochs)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [*command, "--expDir", folder],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if result.returncode:
            return {"error": result.stderr.strip()[-300:]}
        log = [
            json.loads(line)
            for line in next(Path(folder).glob("*/*/log.jsonl")).read_text().splitlines()
        ]
    return {
        "test_top1": log[-1]["test_top1"],
        "train_loss": [round(record["train_loss"], 3) for record in log],
        "cpu_seconds": round(seconds, 1),
        "command": " ".join(["OMP_NUM_THREADS=1 python", *command[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, help="of every network (default: 12, or the table's)")
    parser.add_argument(
        "--oneHead", action="store_true", help="leave the auxiliary heads' losses out"
    )
    parser.add_argument("--only", nargs="*", default=list(OURS))
    arguments = parser.parse_args()
    for name in arguments.only:
        result = learn(name, arguments.epochs or EPOCHS.get(name, 12), heads=not arguments.oneHead)
        name += ", one head" if arguments.oneHead else ""
        print(
            name,
            result.get("test_top1"),
            result.get("cpu_seconds"),
            result.get("error", ""),
            flush=True,
        )
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(known | {name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
