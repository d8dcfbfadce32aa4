"""Small changes to the code that would hurt someone: the tests of the module must see each.

    python tests/campaigns/code_mutants.py --trials 800 --seed 1 --only augmentation training

Draws so many of all possible changes, at least 10 a module and otherwise by lines, and runs the
tests that reach the changed line, the likeliest first, in a copy of the repository. Which those are
is found beforehand, by one run of all tests under coverage (`--map`). What was found is written
after each, to benchmark/results/mutants.json, and a run that was stopped goes on.
equivalent_mutants.csv names those that change nothing that anyone can see, each with the reason.
"""

import argparse
import ast
import compileall
import copy
import csv
import hashlib
import importlib.util
import json
import multiprocessing
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmark" / "results" / "mutants.json"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.csv")
LEAST = 10
# Seconds beyond three times what the tests take unchanged: what takes longer did not end.
MORE_TIME = 30
# Where no test reaches a line that runs.
NOBODY = ("tests/documents/test_structure.py",)
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


# What is said to a library for speed, or as an assertion.
NOT_SEEN = {"strict", "inplace", "non_blocking", "pin_memory"}
# Of two values in either order.
EITHER_WAY = {
    *("min", "max", "minimum", "maximum", "equal", "isinstance", "samefile", "gcd", "zip"),
    "suppress",
}


@dataclass(frozen=True)
class Mutant:
    """One change: file, first and last line, the bytes that are replaced, what is there and what
    takes its place; top: outside all functions; key: the same wherever the same text stands.
    """

    file: str
    line: int
    end: int
    top: bool
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
    if new.__dict__ != node.__dict__ and ast.unparse(new) != ast.unparse(node):
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
    """Yield what runs: no annotations, assertions, texts of messages, scripts' beginnings."""
    if isinstance(tree, ast.If) and "__name__" in ast.unparse(tree.test):
        return
    if isinstance(tree, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
        return
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_comment", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.keyword) and child.arg in NOT_SEEN:
                continue
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
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    within = {
        line for node in functions for line in range(node.body[0].lineno, node.end_lineno + 1)
    }
    for node in nodes(tree):
        for target, after in changes(node):
            first = starts[target.lineno - 1] + target.col_offset
            last = starts[target.end_lineno - 1] + target.end_col_offset
            before = content[first:last].decode()
            name = f"{file} {before} -> {after}"
            seen[name] += 1
            key = hashlib.sha256(f"{name} {seen[name]}".encode()).hexdigest()[:12]
            written = after if isinstance(target, ast.stmt) else f"({after})"
            lines = target.lineno, target.end_lineno
            top = target.lineno not in within
            found.append(Mutant(file, *lines, top, first, last, before, written, key))
    return found


def changed(text: str, mutant: Mutant) -> str:
    """Return a file's text with one change."""
    content = text.encode()
    new = content[: mutant.first] + mutant.after.encode() + content[mutant.last :]
    return new.decode()


def drawn(trials: int, seed: int) -> list[Mutant]:
    """Draw changes: at least LEAST a module, the rest by how many there are.

    A key decides about each, so code that is changed elsewhere draws no others.
    """
    chosen: list[tuple[str, Mutant]] = []
    rest: list[tuple[str, Mutant]] = []
    for path in modules():
        ranked = sorted(
            ((rank(seed, mutant.key), mutant) for mutant in mutants(path)), key=itemgetter(0)
        )
        chosen += ranked[:LEAST]
        rest += ranked[LEAST:]
    rest.sort(key=itemgetter(0))
    chosen += rest[: max(0, trials - len(chosen))]
    chosen.sort(key=itemgetter(0))
    return [mutant for _, mutant in chosen]


def rank(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


@dataclass(frozen=True)
class Map:
    """Which tests reach a line, and how long each takes unchanged.

    lines: file -> line -> numbers of tests; seconds: of each test; always: what is run for every
    change instead.
    """

    tests: list[str]
    seconds: list[float]
    lines: dict[str, dict[str, list[int]]]
    always: list[str] = field(default_factory=list)

    @cached_property
    def order(self) -> list[float]:
        """Of each test, its seconds times the lines it reaches: what is quick and reaches little
        says most about a line in its time.
        """
        counts = Counter(
            number
            for lines in self.lines.values()
            for numbers in lines.values()
            for number in numbers
        )
        return [(0.1 + seconds) * counts[n] for n, seconds in enumerate(self.seconds)]

    def chosen(self, mutant: Mutant, most: float) -> tuple[list[str], float]:
        """Return the tests for one change, the likeliest first, and their seconds together: so
        many at most.
        """
        if self.always:
            return self.always, most
        lines = self.lines.get(mutant.file, {})
        numbers: set[int] = set()
        for line in range(mutant.line, mutant.end + 1):
            numbers.update(lines.get(str(line), ()))
        if not numbers:
            # A process that was killed, or became another, has said nothing of what it reached.
            numbers.update(number for line in lines.values() for number in line)
        if mutant.top:
            # It runs at import, and whoever reads it may call nothing: all that stands beside tests
            # which reach the file.
            reaching = {number for line in lines.values() for number in line}
            files = {self.tests[number].partition("::")[0] for number in reaching}
            numbers.update(
                number for number, name in enumerate(self.tests) if name.partition("::")[0] in files
            )
        tests: list[str] = []
        total = 0.0
        for number in sorted(numbers, key=self.order.__getitem__):
            if tests and total + self.seconds[number] > most:
                continue
            tests.append(self.tests[number])
            total += self.seconds[number]
        return tests or list(NOBODY), total


def make_map(path: Path, jobs: int) -> None:
    """Run all tests under coverage, once, and write down which lines each reaches."""
    from coverage import CoverageData

    with tempfile.TemporaryDirectory(prefix="mutants-map") as scratch:
        place = Path(scratch)
        copy_repository(place / "copy")
        files = sorted((place / "copy" / "tests").glob("*/test_*.py"))
        shares = [place / f"share{number}" for number in range(jobs)]
        running = [
            run_share(share, place / "copy", files[number::jobs])
            for number, share in enumerate(shares)
        ]
        for process in running:
            process.wait()
        data = CoverageData(str(place / "data"))
        for share in shares:
            settings = f"--rcfile={share}/coverage.ini"
            command = [sys.executable, "-m", "coverage", "combine", "--append", settings]
            subprocess.run(command, cwd=share)
            part = CoverageData(str(share / "data"))
            part.read()
            data.update(part)
        write_map(path, data, [share / "report.xml" for share in shares], place / "copy")


def run_share(share: Path, root: Path, files: list[Path]) -> subprocess.Popen[bytes]:
    """Start pytest on some files of tests, with its coverage and report under share."""
    share.mkdir()
    settings = share / "coverage.ini"
    # Processes of a test bear its name: pytest puts it into their environment, where they look
    # for it as they begin. (`patch = subprocess` would give them ours.)
    settings.write_text(
        f"[run]\nsource = {root}\nomit =\n    */tests/*\n    */benchmark/*\n"
        "patch =\n    fork\n    _exit\nparallel = true\n"
        f"data_file = {share}/data\ncontext = ${{PYTEST_CURRENT_TEST-}}\n"
    )
    # Forked ones have coverage's settings from before the test.
    (share / "forks.py").write_text(
        "import os\nfrom coverage import Coverage\n\ndef say():\n"
        "    if Coverage.current() and os.environ.get('PYTEST_CURRENT_TEST'):\n"
        "        Coverage.current().switch_context(os.environ['PYTEST_CURRENT_TEST'])\n\n"
        "def pytest_sessionstart():\n    os.register_at_fork(after_in_child=say)\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "-p", "forks", f"--junitxml={share}/report.xml"]
    options += ["-o", "junit_family=legacy", f"--basetemp={share}/tmp"]
    options += [f"--cov-config={settings}", "--cov", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    env = os.environ | {"COVERAGE_PROCESS_START": str(settings), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(share)
    return subprocess.Popen(command, cwd=root, env=env)


def write_map(path: Path, data: Any, reports: list[Path], root: Path) -> None:
    """Write coverage's contexts and pytest's durations as a Map."""
    seconds: dict[str, float] = {}
    for case in chain.from_iterable(ElementTree.parse(one).iter("testcase") for one in reports):
        if not any(child.tag in ("skipped", "failure", "error") for child in case):
            seconds[f"{case.get('file')}::{case.get('name')}"] = float(case.get("time", 0))
    numbers = {name: number for number, name in enumerate(seconds)}
    lines: dict[str, dict[str, list[int]]] = {}
    for file in data.measured_files():
        reached = lines.setdefault(str(Path(file).relative_to(root)), {})
        for line, contexts in data.contexts_by_lineno(file).items():
            # "test|run" in pytest's own process, "test (call)" in those it starts, or both.
            names = {part.partition(" (")[0] for context in contexts for part in context.split("|")}
            reached[str(line)] = sorted(numbers[name] for name in names if name in numbers)
    value = {"tests": list(seconds), "seconds": list(seconds.values()), "lines": lines}
    path.write_text(json.dumps(value))


def copy_repository(where: Path) -> None:
    command = ["git", "ls-files"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, names):
        target = where / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


class Copy:
    """A copy of the repository in which tests run."""

    def __init__(self, where: Path, tests: Map, most: float) -> None:
        self.where = where
        self.tests = tests
        self.most = most
        copy_repository(where)
        # Compiled files of all that does not change.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-qq",
            "-p",
            "no:cacheprovider",
        ]
        env = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(command, cwd=where, env=env, stdout=subprocess.DEVNULL)
        compileall.compile_dir(where, quiet=2)

    def run(self, tests: list[str], limit: float) -> str:
        """Return "passed", the test that failed, or "time"."""
        told = self.where / "failed.txt"
        told.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            self._test(tests)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                self._end(child)
                failed = told.read_text() if told.exists() else "none began"
                return "passed" if status == 0 else failed
            time.sleep(0.05)
        self._end(child)
        os.waitpid(child, 0)
        return "time"

    def _end(self, child: int) -> None:
        """End whatever the tests left behind."""
        subprocess.run(["pkill", "-KILL", "-s", str(child)])

    def _test(self, tests: list[str]) -> NoReturn:
        """Run tests in this process, which has what takes long to import."""
        status = 3
        try:
            os.setsid()
            os.chdir(self.where)
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
            sys.path[:] = [path for path in sys.path if not path.startswith(str(ROOT))]
            with open(os.devnull, "r+") as nowhere:
                for stream in range(3):
                    os.dup2(nowhere.fileno(), stream)
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-rN", "--tb=no"]
            options += ["--basetemp", str(self.where) + "-temporary"]
            status = int(pytest.main([*options, *tests], [Teller(self.where / "failed.txt")]))
        finally:
            os._exit(status)

    def verdict(self, mutant: Mutant) -> tuple[str, str]:
        """Return "killed" and by which test, "survived", or "time" for one that did not end."""
        tests, seconds = self.tests.chosen(mutant, self.most)
        path = self.where / mutant.file
        before = path.read_text()
        stat = path.stat()
        compiled = Path(importlib.util.cache_from_source(str(path)))
        try:
            compiled.unlink(missing_ok=True)
            path.write_text(changed(before, mutant))
            result = self.run(tests, 3 * seconds + MORE_TIME)
        finally:
            path.write_text(before)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            py_compile.compile(str(path))
        if result in ("passed", "time"):
            return {"passed": "survived"}.get(result, result), ""
        return "killed", result


@dataclass(frozen=True)
class Teller:
    """Of pytest: writes down which test fails."""

    path: Path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.path.write_text(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.path.write_text(report.nodeid)


# Of a worker.
place: Copy


def begin_worker(scratch: str, tests: Map, most: float) -> None:
    """Import what takes long, and make this worker's copy."""
    global place
    # Not hypothesis: pytest rewrites what it tests with.
    for name in ("numpy", "torch", "torchvision", "PIL.Image", "pytest", "scipy.stats", "sklearn"):
        importlib.import_module(name)
    place = Copy(Path(scratch, str(os.getpid())), tests, most)
    if place.run(list(NOBODY), 600) != "passed":
        raise RuntimeError(f"{NOBODY} fails unchanged")


def judge(mutant: Mutant) -> tuple[Mutant, str, str]:
    return mutant, *place.verdict(mutant)


def unsteady(tests: list[str]) -> list[str]:
    """Return those of some tests that fail unchanged: they say nothing."""
    if place.run(tests, 60.0 * len(tests)) == "passed":
        return []
    return [test for test in tests if place.run([test], 600) != "passed"]


def equivalents() -> dict[str, str]:
    if not EQUIVALENT.exists():
        return {}
    with EQUIVALENT.open() as file:
        return {row["key"]: row["reason"] for row in csv.DictReader(file)}


def write(found: dict[str, Any], every: list[Mutant]) -> None:
    """Write what was found, also of earlier draws; the figures are of those drawn now alone."""
    judged = {mutant.key: found[mutant.key] for mutant in every if mutant.key in found}
    figures = {"drawn": len(every), "judged": len(judged), **table(judged)}
    value = {**figures, "mutants": found}
    RESULTS.write_text(json.dumps(value, indent=1) + "\n")


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
    parser.add_argument("--keys", nargs="+", default=[], help="these changes alone")
    about = "run these for each, where the map misses them: in a process that is killed"
    parser.add_argument("--tests", nargs="+", default=[], help=about)
    parser.add_argument("--hours", type=float, default=24.0, help="stop after so many")
    about = "seconds of tests for each, the likeliest first"
    parser.add_argument("--most", type=float, default=120, help=about)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once")
    parser.add_argument("--map", type=Path, required=True, help="made where it is not there")
    arguments = parser.parse_args()
    if not arguments.map.exists():
        make_map(arguments.map, arguments.jobs)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    # What was found of code that is no longer there says nothing.
    there = {mutant.key for path in modules() for mutant in mutants(path)}
    found = {key: one for key, one in known.get("mutants", {}).items() if key in there}
    done = {key for key, one in found.items() if one["verdict"] == "killed"} | set(equivalents())
    every = drawn(arguments.trials, arguments.seed)
    only = tuple(arguments.only) or ("",)
    chosen = [m for m in every if m.key not in done and m.file.startswith(only)]
    if arguments.keys:
        chosen = [mutant for mutant in chosen if mutant.key in arguments.keys]
    # First what was never judged, then what survived.
    chosen.sort(key=lambda mutant: mutant.key in found)
    print(f"{len(every)} drawn, {len(chosen)} to run", flush=True)
    end = time.monotonic() + 3600 * arguments.hours
    tests = Map(**json.loads(arguments.map.read_text()), always=arguments.tests)
    context = multiprocessing.get_context("fork")
    begin = partial(begin_worker, tests=tests, most=arguments.most)
    with (
        tempfile.TemporaryDirectory(prefix="mutants") as scratch,
        # Its workers may have children, a Pool's may not.
        ProcessPoolExecutor(arguments.jobs, context, begin, (scratch,)) as pool,
    ):
        waiting = [pool.submit(judge, mutant) for mutant in chosen]
        for number, future in enumerate(as_completed(waiting), 1):
            mutant, verdict, by = future.result()
            found[mutant.key] = {
                "file": mutant.file,
                "line": mutant.line,
                "before": mutant.before[:200],
                "after": mutant.after[:200],
                "verdict": verdict,
                "by": by,
            }
            shown = f"{mutant.file}:{mutant.line}: {mutant.before[:60]!r} -> {mutant.after[:60]!r}"
            print(f"{number}/{len(chosen)} {verdict} {mutant.key} {shown}", flush=True)
            write(found, every)
            if time.monotonic() > end:
                for one in waiting:
                    one.cancel()
                break
        killers = {
            by for mutant in chosen if "::" in (by := found.get(mutant.key, {}).get("by", ""))
        }
        for test in pool.submit(unsteady, sorted(killers)).result():
            print(f"{test} fails unchanged: what it killed is judged again", flush=True)
            found = {key: one for key, one in found.items() if one.get("by") != test}
        write(found, every)
    result = json.loads(RESULTS.read_text())
    print(
        json.dumps({k: v for k, v in result.items() if k not in ("modules", "mutants")}, indent=1)
    )


if __name__ == "__main__":
    main()
