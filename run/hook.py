"""A function of the user's that hears of every epoch."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from base.errors import Interrupted, Refused
from base.text import printable
from report.record import Json

Function = Callable[[Json, Json], Any]


class Hook:
    """Calls function(record, run) after each epoch; what it raises ends no run.

    record: the epoch's line of log.jsonl; run: "folder", its path, and "options", all by name.
    """

    def __init__(self, name: str, function: Function, run: Json) -> None:
        self.name, self.function, self.run = name, function, run
        self.failed = False

    def __call__(self, record: Json) -> None:
        try:
            self.function(record, self.run)
        except Interrupted:
            raise
        # It is not our code: whatever goes wrong in it must not cost what was trained.
        except BaseException as error:
            if not self.failed:
                what = f"{type(error).__name__}: {printable(error)}"
                told = f"--hook {self.name} failed: {what}; training continues"
                print(told, file=sys.stderr, flush=True)
            self.failed = True


def load(name: str, run: Json) -> Hook:
    """Import module:function, of the working folder or installed. Raises Refused."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise Refused(f"--hook '{name}' is not module:function, for example wandb_hook:log")
    sys.path.append(os.getcwd())
    try:
        found = getattr(_module(module), function)
    except Interrupted:
        raise
    # A module of the user's may raise anything as it is imported.
    except BaseException as error:
        what = f"{type(error).__name__}: {printable(error)}"
        raise Refused(f"--hook {name} cannot be imported: {what}") from None
    if not callable(found):
        raise Refused(f"--hook {name} is no function")
    return Hook(name, found, run)


def _module(name: str) -> ModuleType:
    """Import a module; a file of the working folder goes before one of this suite's of its name."""
    path = Path.cwd().joinpath(*name.split(".")).with_suffix(".py")
    if not path.is_file() or name not in sys.modules:
        return import_module(name)
    spec = spec_from_file_location(f"hook_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
