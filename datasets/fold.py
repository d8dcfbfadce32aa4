"""Which part of the training side is left out: what `--fold 2/5` says.

Nothing here imports torch: the command line is read with it.
"""

from dataclasses import dataclass

from base.arguments import is_whole

FORM = "N/OF, for example 2/5: the second of five"


@dataclass(frozen=True)
class Fold:
    """number: from 1; of: how many there are."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Fold":
        """Read `2/5`. Raises ValueError."""
        number, _, of = text.partition("/")
        if not (is_whole(number) and is_whole(of) and 1 <= int(number) <= int(of) >= 2):
            raise ValueError(f"'{text}' is not {FORM}")
        return cls(int(number), int(of))

    @classmethod
    def all(cls, count: int) -> list["Fold"]:
        return [cls(number, count) for number in range(1, count + 1)]

    @property
    def suffix(self) -> str:
        """What its run's name ends with."""
        return f"fold-{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
