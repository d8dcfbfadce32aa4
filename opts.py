"""The command line of a run: it, its recipes and a resumed run's own values become Options.

Nothing here imports torch.

The names are the Torch7 suite's. `@file` anywhere on the command line reads options from a recipe,
one or more a line; a # begins a comment. What stands on the command line itself wins.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from typing import Any, NoReturn

from base.arguments import LIMIT_WAYS, Parser, described, kind_of, nearest, number_of, reader
from base.errors import Refused
from base.files import read_text
from options.checks import mistakes, unfitting
from options.settle import imply, settle, settled
from options.table import FIELDS, UNRECORDED, Options, Values

__all__ = ["FIELDS", "WAYS_OUT", "Options", "build_parser", "parse"]

# Bytes of a recipe file, and of a run's options.json.
MAX_RECIPE = 1 << 20

# What a user of main.py can do about a limit that the files below it report.
WAYS_OUT = LIMIT_WAYS | {
    "bad images": "mend or remove it, or leave out all bad images with --badImages skip; "
    "`python prepare.py check --data_dir DIR` lists them all",
    "crop size": "raise --cropSize",
    "learning rate": "try a lower --LR",
    "batch memory": "lower --batchSize, or raise --accumulate",
    "shared memory": "lower --nThreads or --batchSize; --nThreads 0 needs none",
    "workers": "raise it, or lower --nThreads; 0 starts no workers",
    "folder": "choose another --expDir or --expID",
    "in use": "wait for it, or choose another --expID",
    "holds a run": "resume it by --continue, remove it by --overwrite, or name another by --expID",
    "checkpoints": "restart with --overwrite",
    "no test": "put images of them there, or name other --classes",
    "no split": "give --valShare 0.1 to split it",
    "own split": "leave out --valShare",
    "data_dir": "give --data_dir DIR",
    "shards": "give --dataset shards",
    "parquet": "give --dataset parquet",
    "table": "give --labels FILE",
    "labels": "say where labels stand with --column label=NAME, or leave out what has none with "
    "--badImages skip",
    "bad rows": "mend them, or leave them out with --badImages skip",
    "column": "name it with --column image=NAME, label=NAME or split=NAME",
    "cache": "raise --cacheGB",
    "cache folder": "name another --cacheDir",
    "dbcollection": "process the data set again, or give --dbcollection FILE",
    "decoded memory": "give --decoded disk, or leave --decoded out",
    "decoded disk": "name another disk with --decodedDir, or leave --decoded out",
    "decoded folder": "name another with --decodedDir",
    "decoded GPU": "give --decoded ram, or leave it out",
    "decoded arrays": "leave --decoded out",
    "shared pixels": "give --decoded disk",
    "GPUs": "lower --nGPU, or choose other GPUs with --GPU",
    "one CPU": "leave out --GPU -1 or --nGPU",
    "frozen layers": "name fewer layers with --freeze",
    "synthetic": "ask for fewer images with --synthetic",
    "network": "give its own --netType",
    "no ImageNet": "give --data_dir DIR; to start now without it: python main.py --dataset mnist",
}

# What launchers tell a rank.
LAUNCHED = (
    *("TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE"),
)


def parse(argv: list[str] | None = None, prog: str = "main.py") -> Options:
    """Read the command line. Exits with status 2 and one line where it is wrong, which begins with
    the name of the program.

    With --continue the run's own options.json is read first; only what is given again differs, and
    stands in `changed`.
    """
    parser = build_parser(prog)
    try:
        launched = {name: number_of(name, 0) for name in LAUNCHED}
    except Refused as error:
        parser.error(str(error))
    # A recipe may stand anywhere; the command line wins in any case.
    arguments = _recipes_first(sys.argv[1:] if argv is None else argv, parser)

    # torchrun starts a run again after a rank was lost: it resumes then.
    if launched["TORCHELASTIC_RESTART_COUNT"]:
        arguments = _restarted(arguments, parser)

    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse_unknown(parser, unknown)

    # Options that were not given are absent, so that a run's own values are not overwritten by
    # defaults.
    given = vars(known)
    options = _resumed(given, parser) if given.get("continue_") else Options(**given)
    options.given = given

    imply(options)
    for message in mistakes(options):
        parser.error(_with_place(message, options))
    settle(options)
    for message in unfitting(options):
        parser.error(_with_place(message, options))
    return options


def _with_place(message: str, options: Options) -> str:
    """Return a message, and where an option stands that was not given."""
    given = {name.rstrip("_") for name in options.given}
    named = re.search(r"--(\w+)", message)
    if not options.continue_ or named is None or named[1] in given:
        return message
    record = options.folder / "options.json"
    return f"{message} (it stands in {record})" if os.path.exists(record) else message


def build_parser(prog: str = "main.py") -> Parser:
    """Return the parser of main.py, whose options others take too: one a field of Options."""
    start = "Every option has a default: `python main.py --dataset mnist` trains at once."
    about = f"Train an image classifier. {start}"
    epilog = "@FILE reads options from a recipe file."
    parser = Parser(prog=prog, description=about, allow_abbrev=False, epilog=epilog)
    groups: dict[str, argparse._ArgumentGroup] = {}

    for name, field in FIELDS.items():
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument("--" + name.rstrip("_"), **described(name, field))

    return parser


def _restarted(arguments: list[str], parser: Parser) -> list[str]:
    """Return the command line of a start after the first: it goes on with what that one began.

    Where a rank was lost before anything began, the run that is to be removed is still there.
    """
    others = [word for word in arguments if word not in ("--overwrite", "--continue")]
    known, _ = parser.parse_known_args(others)
    begun: Any = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        path = Options(**vars(known)).folder / "options.json"
        begun = json.loads(read_text(path, MAX_RECIPE))["launch"]
    if "--overwrite" in arguments and begun != os.environ.get("TORCHELASTIC_RUN_ID"):
        return [*others, "--overwrite"]
    return [*others, "--continue"]


def _refuse_unknown(parser: Parser, unknown: list[str]) -> NoReturn:
    names = [text for action in parser._actions for text in action.option_strings]
    word = unknown[0].split("=")[0]
    parser.error(
        f"unknown option {word}{nearest(word, names)} (python {parser.prog} --help lists all)"
    )


def _recipes_first(arguments: list[str], parser: Parser) -> list[str]:
    """Put the options of all @files before those of the command line itself, so that the latter
    win.
    """
    recipes: list[str] = []
    for word in arguments:
        if word.startswith("@"):
            recipes += _read_recipe(word[1:], parser)
    return recipes + [word for word in arguments if not word.startswith("@")]


def _read_recipe(path: str, parser: Parser) -> list[str]:
    try:
        text = read_text(os.path.expanduser(path), MAX_RECIPE)
        return shlex.split(text, comments=True)
    except (OSError, ValueError) as error:
        parser.error(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}")


def _resumed(given: Values, parser: Parser) -> Options:
    """Return the options of the run that is to be resumed, with what is given again."""
    path = Options(**given).folder / "options.json"
    # Where it cannot be looked at, whoever writes there says so.
    if not os.path.exists(path):
        return Options(**given)

    try:
        stored = json.loads(read_text(path, MAX_RECIPE))["options"]
        if not isinstance(stored, dict):
            raise ValueError("it holds no options")
        options = Options(
            **{name: _stored(name, value) for name, value in stored.items() if name in FIELDS}
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        argparse.ArgumentTypeError,
    ) as error:
        parser.error(f"cannot read {path}: {error}: correct it, or restart with --overwrite")

    for name, value in given.items():
        # What an older run does not say is as it was then: the default.
        before = getattr(options, name) if name in stored else FIELDS[name].default
        if name not in UNRECORDED and settled(name, before) != settled(name, value):
            options.changed[name] = (before, value)
        setattr(options, name, value)
    # Runs of before wrote down no schedule that they were not given.
    if "schedule" not in given and options.schedule is None:
        options.schedule = "regime" if options.LR is None else "constant"
    # The run lies where it was found, whatever it was called when it began.
    options.expDir = str(path.parents[2])

    return options


def _stored(name: str, value: object) -> Any:
    """Return an option's value from options.json. Raises ValueError where it is none."""
    field = FIELDS[name]
    if value is None and field.default is None:
        return None
    if kind_of(field) is bool or value is None:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
        return value
    return reader(field)(str(value))
