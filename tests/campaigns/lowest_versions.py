"""The lowest versions that pyproject.toml declares pass the normal tests.

Makes a virtual environment with exactly those, and runs pytest in it:
`python tests/campaigns/lowest_versions.py [--keep FOLDER] [pytest's arguments]`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lowest(requirement: str) -> str:
    """Return `name==version` for `name>=version`; others as they are."""
    return re.sub(r"^([\w.-]+)>=([\w.]+)$", r"\1==\2", requirement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder of the environment, which then stays")
    arguments, others = parser.parse_known_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [word for group in groups for word in group]
    pinned = [lowest(word) for word in wanted if not word.startswith(project["name"])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch, "venv")
        if not (folder / "bin").exists():
            venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", *pinned], check=True)
        sys.exit(subprocess.run([python, "-m", "pytest", *others], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
