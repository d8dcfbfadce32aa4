"""The table of augmentations and the text form of a pipeline. Nothing here imports torch: `--help` reads this table.

A pipeline is written as names with values, `pad:4,crop,flip,jitter:0.4`, in any order: it always runs by stage.
Each augmentation draws from a random stream of its own name, a fixed number of draws an image, so that adding one
changes no other.
"""

import difflib
from dataclasses import dataclass

WINDOW, GEOMETRY, FLIP, COLOUR, NOISE, ERASE, MIX = range(7)  # the order in which stages run


@dataclass(frozen=True)
class Value:
    """One value of an augmentation: its name, what it is unless given, and the range it may have."""

    name: str
    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Augmentation:
    """`function`, as "module:function" below this package, called as function(images, u, *values).

    images: (N, C, H, W) uint8 or float; u: (N, draws) float32 in [0, 1). A window has no function: `transforms`
    chooses with it which part of the stored image is read at all.
    """

    function: str
    stage: int
    draws: int
    values: tuple[Value, ...]
    about: str


def _strength(default: float) -> tuple[Value, ...]:
    return (Value("strength", default, 0.0, 1.0),)


AUGMENTATIONS = {
    "pad": Augmentation("", WINDOW, 0, (Value("pixels", 4, 0, 256),), "let crops reach this far over the border, in black"),
    "crop": Augmentation("", WINDOW, 2, (), "a random part of cropSize, else the centre"),
    "flip": Augmentation("geometry:flip", FLIP, 1, (), "mirror every second image left-right"),
    "jitter": Augmentation("colour:jitter", COLOUR, 4, _strength(0.4), "brightness, contrast, saturation in any order"),
}


@dataclass(frozen=True)
class Step:
    """One augmentation of a pipeline with all its values."""

    name: str
    values: tuple[float, ...]

    @property
    def entry(self) -> Augmentation:
        return AUGMENTATIONS[self.name]

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{value:g}" for value in self.values)])


def parse(text: str) -> list[Step]:
    """Read `pad:4,crop,flip`. Raises ValueError that names the word and what is allowed."""
    if text in ("", "none"):
        return []
    steps = [_step(word.strip()) for word in text.split(",")]
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' stands twice in '{text}': name it once")
    return sorted(steps, key=lambda step: step.entry.stage)


def _step(word: str) -> Step:
    name, *numbers = word.split(":")
    if name not in AUGMENTATIONS:
        close = difflib.get_close_matches(name, AUGMENTATIONS, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown augmentation '{name}': {hint}allowed are none, {', '.join(AUGMENTATIONS)}")
    allowed = AUGMENTATIONS[name].values
    if len(numbers) > len(allowed):
        takes = ", ".join(value.name for value in allowed) or "no value"
        raise ValueError(f"'{word}' has too many values: {name} takes {takes}")
    values = [value.default for value in allowed]
    for place, (number, value) in enumerate(zip(numbers, allowed, strict=False)):
        values[place] = _number(number, value, word)
    return Step(name, tuple(values))


def _number(text: str, value: Value, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not value.low <= number <= value.high:
        raise ValueError(f"'{word}': {value.name} must be a number from {value.low:g} to {value.high:g}, got '{text}'")
    return number
