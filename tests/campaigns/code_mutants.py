"""Small changes to the code that would hurt someone: the tests of the module must see each.

    python tests/campaigns/code_mutants.py --trials 800 --seed 1 --only augmentation training

Draws so many of all possible changes, at least 10 a module and otherwise by lines, and runs the
tests of the changed module in a copy of the repository. What was found is written after each, to
benchmark/results/mutants.json, and a run that was stopped goes on. equivalent_mutants.csv names
those that change nothing that anyone can see, each with the reason.
"""

import argparse
import ast
import copy
import csv
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmark" / "results" / "mutants.json"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.csv")
LEAST = 10
# Seconds beyond three times what the tests take unchanged.
MORE_TIME = 30
# Module or folder -> the tests that look at it, those that see most first.
TESTS = {
    "augmentation": "augmentation loading/test_loaders.py",
    "transforms": "augmentation loading/test_loaders.py",
    "base": "base datasets/test_files.py run commands/test_options.py commands/test_around.py",
    "datasets": "datasets commands/test_sources.py",
    "datasets/changes": "datasets run commands/test_main.py",
    "datasets/remote": "datasets/test_remote.py",
    "data": "loading datasets/test_data.py commands/test_main.py",
    "loading": "loading datasets/test_data.py commands/test_main.py",
    "models": "models",
    "model": "models commands/test_predict.py commands/test_testing.py",
    "training": "training models run/test_checkpoint.py",
    "training/ranks": "training/test_ranks.py",
    "run": "run commands/test_main.py commands/test_around.py",
    "report": "report commands/test_main.py",
    "preparation": "preparation datasets",
    "prepare": "preparation commands/test_others_files.py",
    "predict": "commands/test_predict.py commands/test_others_files.py",
    "export": "commands/test_export.py commands/test_others_files.py",
    "compare": "commands/test_around.py report",
    "opts": "commands/test_options.py commands/test_main.py commands/test_around.py",
    "configs": "commands run training",
    "main": "commands/test_main.py training commands/test_testing.py",
    "utils": "loading run training",
    "statistics": "datasets/test_data.py documents/test_structure.py commands/test_main.py",
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}


# Of two values in either order.
EITHER_WAY = {"min", "max", "minimum", "maximum", "equal", "isinstance", "samefile", "gcd", "zip"}


@dataclass(frozen=True)
class Mutant:
    """One change: file, line, the bytes that are replaced, what is there and what takes its place;
    key: the same wherever the same text stands.
    """

    file: str
    line: int
    first: int
    last: int
    before: str
    after: str
    key: str


def modules() -> list[Path]:
    """Return the product's files: all that is tracked, but tests, benchmarks and sentences."""
    command = ["git", "ls-files", "*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [
        ROOT / name
        for name in names
        if not name.startswith(("tests/", "benchmark/")) and (ROOT / name).stat().st_size > 300
    ]


def changes(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield what a node can be changed to: the part that is replaced, and the text in its place."""
    new: Any = copy.copy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        new.ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        new.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        new = node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = node.value
        changed = not value if isinstance(value, bool) else value + 1
        new = ast.Constant(changed if not isinstance(value, float) else value * 2 + 1)
    elif isinstance(node, ast.Call) and _can_swap(node):
        new.args = [node.args[1], node.args[0], *node.args[2:]]
    elif isinstance(node, ast.If):
        # A guard that is never met.
        yield node.test, "False"
        return
    elif isinstance(node, ast.IfExp):
        yield node, ast.unparse(node.body)
        new = node.orelse
    elif not (isinstance(node, ast.Expr) and not is_text(node)):
        return
    if new.__dict__ != node.__dict__:
        yield node, ast.unparse(new)
    if isinstance(node, (ast.Expr, ast.AugAssign)):
        yield node, "pass"


def _can_swap(call: ast.Call) -> bool:
    if ast.unparse(call.func).rpartition(".")[2] in EITHER_WAY:
        return False
    starred = any(isinstance(argument, ast.Starred) for argument in call.args[:2])
    return len(call.args) > 1 and not call.keywords and not starred


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs: no annotations, no texts of messages, no scripts' beginnings."""
    if isinstance(tree, ast.If) and "__name__" in ast.unparse(tree.test):
        return
    if isinstance(tree, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
        return
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_comment", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from nodes(child)


def mutants(path: Path) -> list[Mutant]:
    """Return all changes of one file."""
    text = path.read_text()
    content = text.encode()
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    file = str(path.relative_to(ROOT))
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for node in nodes(ast.parse(text)):
        for target, after in changes(node):
            first = starts[target.lineno - 1] + target.col_offset
            last = starts[target.end_lineno - 1] + target.end_col_offset
            before = content[first:last].decode()
            name = f"{file} {before} -> {after}"
            seen[name] += 1
            key = hashlib.sha256(f"{name} {seen[name]}".encode()).hexdigest()[:12]
            written = after if isinstance(target, ast.stmt) else f"({after})"
            found.append(Mutant(file, target.lineno, first, last, before, written, key))
    return found


def changed(text: str, mutant: Mutant) -> str:
    """Return a file's text with one change."""
    content = text.encode()
    new = content[: mutant.first] + mutant.after.encode() + content[mutant.last :]
    return new.decode()


def drawn(trials: int, seed: int, only: list[str]) -> list[Mutant]:
    """Draw changes: at least LEAST a module, the rest by how many there are."""
    pick = random.Random(seed)
    chosen: list[Mutant] = []
    rest: list[Mutant] = []
    for path in modules():
        every = mutants(path)
        pick.shuffle(every)
        chosen += every[:LEAST]
        rest += every[LEAST:]
    pick.shuffle(rest)
    chosen += rest[: max(0, trials - len(chosen))]
    pick.shuffle(chosen)
    return [m for m in chosen if not only or m.file.startswith(tuple(only))]


def tests_of(file: str) -> list[str]:
    name = file.removesuffix(".py")
    while name and name not in TESTS:
        name = name.rpartition("/")[0]
    return [f"tests/{path}" for path in TESTS[name].split()]


class Copy:
    """A copy of the repository in which tests run. clean: seconds of the unchanged tests."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.clean: dict[str, float] = {}
        command = ["git", "ls-files"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
        for name in filter(None, names):
            target = where / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)

    def run(self, tests: list[str], limit: float | None) -> tuple[str, str]:
        """Return "passed", "failed" or "time", and the test that failed first."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-rN", "--tb=no"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        process = subprocess.Popen(
            command,
            cwd=self.where,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)])
            process.kill()
            process.communicate()
            return "time", ""
        return ("passed" if process.returncode == 0 else "failed"), said[-200:]

    def seconds(self, tests: list[str]) -> float:
        """Return how long the unchanged tests take. Raises RuntimeError where they fail."""
        name = " ".join(tests)
        if name not in self.clean:
            started = time.monotonic()
            status, said = self.run(tests, None)
            if status != "passed":
                raise RuntimeError(f"{name} fails unchanged: {said}")
            self.clean[name] = time.monotonic() - started
        return self.clean[name]

    def verdict(self, mutant: Mutant) -> str:
        """Return "killed", "survived", or "time" for one that did not end."""
        tests = tests_of(mutant.file)
        limit = 3 * self.seconds(tests) + MORE_TIME
        path = self.where / mutant.file
        before = path.read_text()
        try:
            path.write_text(changed(before, mutant))
            status, _ = self.run(tests, limit)
        finally:
            path.write_text(before)
        return {"passed": "survived", "failed": "killed"}.get(status, status)


def equivalents() -> dict[str, str]:
    if not EQUIVALENT.exists():
        return {}
    with EQUIVALENT.open() as file:
        return {row["key"]: row["reason"] for row in csv.DictReader(file)}


def table(found: dict[str, Any]) -> dict[str, Any]:
    """Return counts, of each module and of all."""
    known = equivalents()
    by_module: dict[str, Counter[str]] = {}
    for key, one in found.items():
        verdict = "equivalent" if key in known else one["verdict"]
        by_module.setdefault(one["file"], Counter())[verdict] += 1
    total = sum(by_module.values(), Counter())
    counted = total["killed"] + total["survived"] + total["time"]
    share = total["killed"] / counted if counted else 1.0
    return {"killed_share": round(share, 4), **total, "modules": dict(sorted(by_module.items()))}


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--trials", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="files or folders, by how they begin")
    parser.add_argument("--hours", type=float, default=24.0, help="stop after so many")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = known.get("mutants", {})
    chosen = drawn(arguments.trials, arguments.seed, arguments.only)
    end = time.monotonic() + 3600 * arguments.hours
    with tempfile.TemporaryDirectory(prefix="mutants") as scratch:
        place = Copy(Path(scratch))
        for number, mutant in enumerate(chosen, 1):
            if time.monotonic() > end:
                break
            if found.get(mutant.key, {}).get("verdict") == "killed" or mutant.key in equivalents():
                continue
            verdict = place.verdict(mutant)
            found[mutant.key] = {
                "file": mutant.file,
                "line": mutant.line,
                "before": mutant.before[:200],
                "after": mutant.after[:200],
                "verdict": verdict,
            }
            shown = f"{mutant.file}:{mutant.line}: {mutant.before[:60]!r} -> {mutant.after[:60]!r}"
            print(f"{number}/{len(chosen)} {verdict} {mutant.key} {shown}", flush=True)
            RESULTS.write_text(json.dumps(table(found) | {"mutants": found}, indent=1) + "\n")
    result = table(found)
    result.pop("modules")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
