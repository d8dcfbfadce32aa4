"""Files know of each other only what docs/architecture.md says, and the standard library keeps its
names.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import ROOT

import opts
import prepare

TABLE = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
LAYER = {name: int(number) for number, names in TABLE for name in names.split()}
TOP = {path.stem for path in ROOT.glob("*.py")}
FOLDERS = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
ANY_BELOW = {"assembly", "preparation", "benchmark"}  # folders that may import files of the top
OPEN_TO_FOLDERS = {"transforms", "model", "utils"}


def sources(name: str) -> list[Path]:
    return [ROOT / f"{name}.py"] if name in TOP else sorted((ROOT / name).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, at its top or in functions, but for a script's
    own main().
    """
    tree = ast.parse(path.read_text())
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.FunctionDef) and node.name == "main")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Return the files and folders of the top that a file imports."""
    return {name.split(".")[0] for name in imports(path)} & (TOP | FOLDERS)


def wrong_imports(name: str, path: Path) -> list[str]:
    """Return what is wrong with a file's imports, a line each."""
    found = []
    for other in sorted(ours(path) - {name}):
        if other == "statistics":
            # In tests and benchmarks this is the standard library's, which ours hands on.
            found += [] if name == "benchmark" else [f"{path.name} imports statistics by its name"]
        elif LAYER[other] >= LAYER[name]:
            found.append(
                f"{path.name} of layer {LAYER[name]} imports {other} of layer {LAYER[other]}"
            )
        elif name in FOLDERS - ANY_BELOW and other in TOP - OPEN_TO_FOLDERS:
            found.append(f"{path.name} lies in a folder and imports {other}.py")
    return found


@pytest.mark.parametrize("name", sorted(LAYER))
def test_a_file_imports_only_lower_layers(name: str) -> None:
    assert [line for path in sources(name) for line in wrong_imports(name, path)] == []


def test_every_file_has_its_layer() -> None:
    assert LAYER.keys() == TOP | FOLDERS


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_no_folder_has_a_circle(folder: str) -> None:
    graph = {}
    for path in (ROOT / folder).glob("*.py"):
        prefix = f"{folder}."
        graph[path.stem] = {
            name.removeprefix(prefix).split(".")[0]
            for name in imports(path)
            if name.startswith(prefix)
        }
    while leaves := [name for name, used in graph.items() if not used & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


@pytest.mark.parametrize("folder", ["datasets", "models", "augmentation"])
def test_tables_need_no_torch(folder: str) -> None:
    used = {name.split(".")[0] for name in imports(ROOT / folder / "__init__.py")}
    assert not used & {"torch", "numpy", "torchvision"}


@pytest.mark.parametrize("folder", sorted(FOLDERS - {"benchmark"}))
def test_every_folder_says_in_a_sentence_what_it_holds(folder: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_standard_statistics_is_found_from_this_folder() -> None:
    code = "import statistics, torchvision, torch._inductor.runtime.benchmarking\n"
    code += "print(statistics.median([3, 1, 2]))"
    assert python(code) == "2"


def test_triton_finds_the_standard_statistics() -> None:
    pytest.importorskip("triton")
    assert python("import triton.testing, statistics\nprint(statistics.__file__)").endswith(
        str(Path(ROOT.name, "statistics.py"))
    )


def test_ours_computes_although_the_standard_one_is_loaded() -> None:
    code = (
        "import os, sys; sys.path.remove('')\nimport statistics; assert hasattr(statistics, "
        "'NormalDist')\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nimport torch, utils\n"
        "print(utils.load_ours('statistics').measure([torch.full((2, 3, 4, 4), 51, "
        "dtype=torch.uint8)])[0])"
    )
    assert python(code) == "[0.2, 0.2, 0.2]"


def test_sources_speak_of_no_machine_or_host() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in listed:
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".json"}
            and path.exists()
            and path != Path(__file__)
        ):
            text = path.read_text()
            assert "/work/" not in text, name
            assert "/root/" not in text, name


def test_every_limit_has_a_way_out_in_the_programs_that_meet_it() -> None:
    known = set(opts.WAYS_OUT) | set(prepare.WAYS_OUT)
    named = set()
    for name in LAYER:
        for path in sources(name):
            named |= set(re.findall(r'limit="([^"]+)"', path.read_text()))
    named |= {"no split", "pixels", "bytes", "links"}
    assert named <= known
    assert known <= named | {"bad images"}
