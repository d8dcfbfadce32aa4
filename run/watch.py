"""How long a pass takes, and where."""

from dataclasses import dataclass

LIMITING = 0.1  # share of a pass's time that may wait for data before it is said
LONG = 30.0  # seconds of a pass from which on that is judged: before, it is the processes' start that is waited for


@dataclass
class Clock:
    """Seconds of a pass: waiting for data, and all the rest."""

    data: float = 0.0
    compute: float = 0.0
    images: int = 0

    @property
    def seconds(self) -> float:
        return self.data + self.compute
