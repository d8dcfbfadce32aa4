"""Random command lines of all programs: status 0, 1 or 2, one line for 1 and 2, nothing of anyone
else's touched.
"""

import contextlib
import hashlib
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import rig
import torch
from rig import make_images, scratch, script

import compare
import export
import main
import opts
import predict
import prepare
from base import process
from base.arguments import kind_of
from base.errors import clear_errors

PROGRAMS = {
    "main.py": main.main,
    "predict.py": predict.main,
    "export.py": export.main,
    "prepare.py": prepare.main,
    "compare.py": compare.main,
}
# Seconds and bytes that a program may take; main.py's runs are tiny.
SECONDS, MEMORY = 300, 8 << 30
# What a call needs to get beyond its first lines, before random options are added.
STARTS = {
    "main.py": [
        ["--dataset", "synthetic", "--synthetic", "24:3:24"],
        ["--dataset", "folder", "--data_dir", "images"],
        ["--dataset", "folder", "--data_dir", "images", "--test", "--retrain", "best.pt"],
        ["--dataset", "synthetic", "--expDir", "runs", "--expID", "r", "--continue"],
        [],
    ],
    "predict.py": [["best.pt", "images/val"], ["best.pt"], []],
    "export.py": [["best.pt", "--to", "pt2", "out.pt2"], ["best.pt", "--to", "safetensors"], []],
    "prepare.py": [
        [command, "--data_dir", "images"] for command in ("info", "check", "shrink", "index")
    ],
    "compare.py": [["runs/synthetic/r"], []],
}
TINY = [
    *("--netType", "tiny", "--imageSize", "18", "--cropSize", "16", "--batchSize", "8"),
    *("--nEpochs", "1", "--nThreads", "0", "--GPU", "-1", "--logger", "none"),
]
VALUES = [
    *("", "0", "-1", "1", "2", "1e9", "nan", "inf", "-inf", "0.5", "1e-300", "9" * 30, "x", "a,b"),
    *("best.pt", "bare.pth", "images", "images/val", "photo.jpg", "empty", "junk", "list.csv"),
    *("missing", "missing/x", "/dev/null", "/dev/full", "/dev/zero", ".", "~", "~/x"),
    *("pipe", "link.pt", "dead", "runs", "runs/synthetic/r", "@junk", "@missing", "@images", "-"),
    *("ümläut", "a b", "a\nb", "--", "--help", "10m", "3:2:20", "crop,flip", "fork", "cpu"),
]


# Files that only a call that names them may change.
KEPT = ("images", "photo", "best", "bare", "junk")


def fixtures(place: Path) -> None:
    """Make files of all kinds that a path may name."""
    make_images(place / "images", 12, 3)
    rig.finish(
        [
            *TINY,
            "--dataset",
            "synthetic",
            "--synthetic",
            "24:3:24",
            "--snapshot",
            "0",
            "--expDir",
            str(place / "runs"),
            "--expID",
            "r",
        ]
    )
    best = place / "runs" / "synthetic" / "r" / "best.pt"
    shutil.copy(best, place / "best.pt")
    torch.save({"fc.weight": torch.zeros(3, 3)}, place / "bare.pth")
    shutil.copy(next((place / "images" / "val").rglob("*.jpg")), place / "photo.jpg")
    (place / "junk").write_bytes(bytes(range(256)) * 9)
    (place / "list.csv").write_text("path\nphoto.jpg\n")
    (place / "empty").mkdir()
    os.mkfifo(place / "pipe")
    (place / "link.pt").symlink_to("best.pt")
    (place / "dead").symlink_to("nowhere")


def lay_out(first: Path, place: Path) -> subprocess.Popen[bytes]:
    """Copy the files to where the programs run. Returns what reads the pipe there: to write into
    one that nobody reads waits, as it does with every program.
    """
    shutil.copytree(first, place, symlinks=True, ignore=shutil.ignore_patterns("pipe"))
    os.mkfifo(place / "pipe")
    reading = 'while cat "$0"; do :; done > /dev/null 2>&1'
    return subprocess.Popen(["sh", "-c", reading, str(place / "pipe")], process_group=0)


def end(reader: subprocess.Popen[bytes]) -> None:
    os.killpg(reader.pid, signal.SIGKILL)
    reader.wait()


def options_of(program: str) -> list[str]:
    """Return all options of a program."""
    if program == "main.py":
        return [f"--{name.rstrip('_')}" for name in opts.FIELDS]
    parser = (
        importlib.import_module(program.removesuffix(".py")).build_parser()
        if (program != "compare.py")
        else None
    )
    if parser is None:
        return ["--out"]
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            parsers += action.choices.values()
    return sorted({text for one in parsers for a in one._actions for text in a.option_strings})


def command_line(pick: random.Random, program: str, options: list[str]) -> list[str]:
    """Return a start that gets far, or nothing, with a few random options and values."""
    words = list(pick.choice(STARTS[program]))
    if program == "main.py":
        words += TINY if pick.random() < 0.9 else []
    for _ in range(pick.choice((0, 1, 1, 2, 2, 3, 5))):
        option, value = pick.choice(options), _value(pick, program)
        form = pick.random()
        words += (
            [option, value] if form < 0.6 else [f"{option}={value}"] if form < 0.8 else [option]
        )
    if pick.random() < 0.2:
        words.insert(pick.randrange(len(words) + 1), pick.choice(VALUES))
    return words


def _value(pick: random.Random, program: str) -> str:
    """Return a value: of an option of main.py often one that it may have."""
    if program == "main.py" and pick.random() < 0.5:
        field = pick.choice(list(opts.FIELDS.values()))
        choices = field.metadata["choices"]
        if choices:
            return pick.choice(list(choices))
        if kind_of(field) in (int, float):
            return str(pick.choice((0, 1, 2, 3, 0.1, 0.9, 7)))
    return pick.choice(VALUES)


def run_one(program: str, words: list[str], place: Path, home: Path) -> tuple[int, str]:
    """Run a program in a forked child with limits; return its status and what stands on stderr."""
    errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setpgid(0, 0)
            rig.forget_server()
            os.chdir(place)
            os.environ["HOME"] = str(home)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for target, source in ((0, nowhere), (1, nowhere), (2, errors.fileno())):
                os.dup2(source, target)
            # Beyond what this process has already, which may be all tests' so far.
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            process.steady()
            sys.argv[0] = program
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            with clear_errors(opts.WAYS_OUT):
                PROGRAMS[program](words)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    errors.seek(0)
    text = errors.read().decode(errors="replace")
    errors.close()
    return os.waitstatus_to_exitcode(waited), text


def seen(place: Path) -> dict[str, str]:
    """Return what every file is, by its path."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def wrong(program: str, status: int, text: str) -> str:
    """Return what a program did that it must not, "" where all is well."""
    if "Traceback" in text:
        return "a traceback"
    if status not in (0, 1, 2):
        return f"status {status}"
    lines = text.splitlines()
    if status and (not lines or not lines[-1].startswith(program)) and program != "prepare.py":
        # predict.py names each bad image, and check what differs.
        return "" if program == "predict.py" and lines else "no line that names the program"
    return ""


def run(trials: int = 3000, seed: int = 1, *, show: int = 10) -> dict[str, Any]:
    pick = random.Random(seed)
    counts: dict[str, Any] = {"trials": trials, "wrong": 0, "lost": 0}
    statuses = dict.fromkeys(("0", "1", "2"), 0)
    examples: list[str] = []
    with scratch() as base:
        (base / "home").mkdir()
        (base / "first").mkdir()
        fixtures(base / "first")
        options = {program: options_of(program) for program in PROGRAMS}
        place = base / "place"
        reader = lay_out(base / "first", place)
        for _ in range(trials):
            program = pick.choice([*PROGRAMS, "main.py", "main.py"])
            words = command_line(pick, program, options[program])
            before = seen(place)
            status, text = run_one(program, words, place, base / "home")
            problem = wrong(program, status, text)
            after = seen(place)
            # A call may change what it names, and what its run writes; nothing else.
            touched = [name for name in before if name.startswith(KEPT)]
            named = {word.split("=")[-1] for word in words}
            lost = [n for n in touched if after.get(n) != before[n] and n not in named]
            counts["wrong"] += bool(problem)
            counts["lost"] += bool(lost)
            statuses[str(status)] = statuses.get(str(status), 0) + 1
            if (problem or lost) and len(examples) < show:
                examples.append(f"{program} {words}: {problem or lost}: {text[-600:]}")
            if after != before:
                end(reader)
                shutil.rmtree(place)
                reader = lay_out(base / "first", place)
        end(reader)
    return {**counts, "statuses": statuses, "examples": examples}


if __name__ == "__main__":
    script("15 command lines", run, 3000)
