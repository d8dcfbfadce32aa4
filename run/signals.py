"""How a run answers signals: save and stop, or save and continue."""

import os
import signal
from types import FrameType

from base.errors import Interrupted, asked_to_stop
from loading.deaths import end_workers


class Stopped(SystemExit):
    """The run was asked to stop and has saved what it did.

    Its status is 128 + the signal's number.
    """


class Signals:
    """What asks a program to end: save and stop; a second one: stop now. SIGUSR1: save and
    continue.

    Until `armed` nothing is there to save, so the first one raises Interrupted. A terminal that
    closes ends a run the same way; under nohup it goes on.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self.armed = False
        self.before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Signals":
        handlers = dict.fromkeys(asked_to_stop(), self._on_stop)
        handlers[signal.SIGUSR1] = self._on_save
        self.before = {
            number: signal.signal(number, handler) for number, handler in handlers.items()
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop is None:
            self.stop = number
            if self.armed:
                return
            raise Interrupted(number)
        end_workers()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
