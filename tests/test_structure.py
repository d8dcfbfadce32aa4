"""The files know of each other only what the architecture says, and the standard library keeps its names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT

OURS = {path.stem for path in ROOT.glob("*.py")} | {"augmentation", "datasets", "models", "benchmark", "preparation"}
LAYERS = {
    "randomness": set(),
    "transforms": {"augmentation", "datasets", "randomness"},
    "augmentation": {"augmentation", "randomness"},
    "models": {"models"},
    "escape": set(),
    "utils": {"escape", "randomness"},
    "statistics": set(),
    "metrics": set(),
    "datasets": {"datasets", "transforms", "utils", "randomness"},
    "plan": {"randomness"},
    "workers": {"datasets", "plan", "transforms", "utils"},
    "data": {"datasets", "plan", "transforms", "utils", "workers"},
    "model": {"checkpoint", "models", "utils"},
    "schedule": set(),
    "ranks": {"utils"},
    "optimizer": {"ranks", "schedule", "utils"},
    "checkpoint": {"utils"},
    "logger": {"utils"},
    "pictures": {"utils"},
    "report": {"metrics", "pictures", "utils"},
    "process": {"utils", "workers"},
    "run": {"checkpoint", "logger", "metrics", "optimizer", "process", "ranks", "report", "utils", "workers"},
    "preparation": {"datasets", "preparation", "transforms", "utils"},
    "training": {"datasets", "metrics", "model", "models", "optimizer", "opts", "ranks", "run", "schedule", "utils"},
    "arguments": {"datasets", "escape", "models"},
    "opts": {"arguments", "augmentation", "datasets", "escape", "models", "schedule"},
    "configs": {
        "datasets",
        "randomness",
        "augmentation",
        "checkpoint",
        "data",
        "logger",
        "model",
        "models",
        "opts",
        "plan",
        "process",
        "ranks",
        "report",
        "run",
        "training",
        "transforms",
        "utils",
    },
    "main": {"datasets", "opts", "configs", "metrics", "optimizer", "ranks", "report", "run", "training", "utils"},
}
ENTRYPOINTS = {"main", "sheets", "predict", "export", "prepare", "compare", "benchmark"}


def imports(path: Path) -> set[str]:
    """Return the first names that a file imports at its top or in functions, but for a script's own main()."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == "main")]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_what_the_architecture_allows(name: str) -> None:
    paths = [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else sorted((ROOT / name).glob("*.py"))
    for path in paths:
        assert (imports(path) & OURS) - LAYERS[name] <= set(), path.name


def test_every_file_has_its_layer() -> None:
    assert LAYERS.keys() | ENTRYPOINTS >= OURS


def test_nothing_imports_an_entrypoint_and_nobody_the_name_statistics() -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("datasets/*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("augmentation/*.py")]:
        assert not imports(path) & (ENTRYPOINTS | {"statistics"}), path.name


@pytest.mark.parametrize("path", ["datasets", "models", "augmentation"])
def test_tables_need_no_torch(path: str) -> None:
    assert not imports(ROOT / path / "__init__.py") & {"torch", "numpy", "torchvision"}


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_standard_statistics_is_found_from_this_folder() -> None:
    code = "import statistics, torchvision, torch._inductor.runtime.benchmarking\nprint(statistics.median([3, 1, 2]))"
    assert python(code) == "2"


def test_triton_finds_the_standard_statistics() -> None:
    pytest.importorskip("triton")
    assert python("import triton.testing, statistics\nprint(statistics.__file__)").endswith(
        str(Path(ROOT.name, "statistics.py"))
    )


def test_ours_computes_although_the_standard_one_is_loaded() -> None:
    code = (
        "import os, sys; sys.path.remove('')\nimport statistics; assert hasattr(statistics, 'NormalDist')\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nimport torch, utils\n"
        "print(utils.load_ours('statistics').measure([torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)])[0])"
    )
    assert python(code) == "[0.2, 0.2, 0.2]"


def test_sources_speak_of_no_machine_or_host() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json"} and path.exists() and path != Path(__file__):
            text = path.read_text()
            assert "/work/" not in text, name
            assert "/root/" not in text, name
