"""The table of augmentations and the text form of a pipeline.

Nothing here imports torch: `--help` reads this table.

A pipeline is written as names with values, `pad:4,crop,flip,jitter:0.4`, in any order: it always
runs by stage. Each augmentation draws from a random stream of its own name, a fixed number of draws
an image, so that adding one changes no other.
"""

import difflib
from dataclasses import dataclass

# The order in which stages run.
WINDOW, GEOMETRY, FLIP, COLOUR, NOISE, ERASE, MIX = range(7)


@dataclass(frozen=True)
class Value:
    """One value of an augmentation: its name, its default, and the range it may have."""

    name: str
    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Augmentation:
    """`function`, as "module:function" below this package, called as function(images, u, *values).

    images: (N, C, H, W) uint8 or float; u: (N, draws) float32 in [0, 1). A window has no function:
    `transforms` chooses with it which part of the stored image is read at all.
    """

    function: str
    stage: int
    draws: int
    values: tuple[Value, ...]
    about: str
    # As function: from u and the side, on the host, to what a GPU's gets.
    prepare: str = ""
    # As function: what a GPU runs instead, on what was prepared.
    on_gpu: str = ""
    # As function, from images and draws: the same, written over the images, on a CPU.
    in_place: str = ""


def _strength(default: float, most: float = 1.0, name: str = "strength") -> tuple[Value, ...]:
    return (Value(name, default, 0.0, most),)


_PIXELS = (Value("pixels", 4, 0, 256),)
_DEGREES = Value("degrees", 15, 0, 180)
_AREAS = (
    Value("smallest area", 0.08, 0.01, 1),
    Value("largest area", 1, 0.01, 1),
    Value("aspect", 4 / 3, 1, 4),
)
_SIDES = (Value("least", 256, 1, 4096), Value("most", 480, 1, 4096))
_HSV = (Value("hue", 0.05, 0, 0.5), Value("saturation", 0.3, 0, 1), Value("value", 0.3, 0, 1))
_ERASE = (
    Value("probability", 0.25, 0, 1),
    Value("smallest area", 0.02, 0.001, 1),
    Value("largest area", 0.33, 0.001, 1),
)
_RAND = (Value("operations", 2, 1, 4), Value("magnitude", 9, 0, 30))

AUGMENTATIONS = {
    "scale": Augmentation(
        "", WINDOW, 1, _SIDES, "scale the shorter side to a random length, pixels"
    ),
    "pad": Augmentation(
        "", WINDOW, 0, _PIXELS, "let crops reach this far over the border, in black"
    ),
    "crop": Augmentation("", WINDOW, 2, (), "a random part of cropSize, else the centre"),
    "resizedcrop": Augmentation(
        "", WINDOW, 40, _AREAS, "a random part of random area and aspect, scaled to cropSize"
    ),
    "shift": Augmentation("geometry:shift", GEOMETRY, 2, _PIXELS, "move by whole pixels"),
    "rotate": Augmentation("geometry:rotate", GEOMETRY, 1, (_DEGREES,), "turn about the centre"),
    "warp": Augmentation(
        "geometry:warp", GEOMETRY, 2, (_DEGREES, *_strength(0.2, 0.9, "scale")), "turn and enlarge"
    ),
    "flip": Augmentation(
        "geometry:flip",
        FLIP,
        1,
        (),
        "mirror every second image left-right",
        in_place="geometry:flip_in_place",
    ),
    "randaugment": Augmentation(
        "policy:randaugment",
        COLOUR,
        8,
        _RAND,
        "operations of one magnitude",
        prepare="policy_gpu:prepare_rand",
        on_gpu="policy_gpu:apply_layers",
    ),
    "trivial": Augmentation(
        "policy:trivial",
        COLOUR,
        3,
        (),
        "one operation of random magnitude",
        prepare="policy_gpu:prepare_trivial",
        on_gpu="policy_gpu:apply_layers",
    ),
    "jitter": Augmentation(
        "colour:jitter", COLOUR, 4, _strength(0.4), "brightness, contrast, saturation in any order"
    ),
    "brightness": Augmentation("colour:brightness", COLOUR, 1, _strength(0.4), "a factor"),
    "contrast": Augmentation(
        "colour:contrast", COLOUR, 1, _strength(0.4), "a factor about the mean grey"
    ),
    "saturation": Augmentation(
        "colour:saturation", COLOUR, 1, _strength(0.4), "a factor about each pixel's grey"
    ),
    "hsv": Augmentation(
        "colour:hsv", COLOUR, 3, _HSV, "hue turned, saturation and value by factors"
    ),
    "grey": Augmentation(
        "colour:grey", COLOUR, 1, _strength(0.1, name="probability"), "without colours"
    ),
    "lighting": Augmentation(
        "colour:lighting", COLOUR, 4, _strength(0.1, name="deviation"), "AlexNet's colour noise"
    ),
    "mul": Augmentation(
        "colour:mul", COLOUR, 0, (Value("factor", 1, 0, 16),), "one factor for all"
    ),
    "vignette": Augmentation("colour:vignette", COLOUR, 1, _strength(0.5), "darker corners"),
    "smooth": Augmentation(
        "noise:smooth", NOISE, 1, (Value("sigma", 1, 0.1, 16),), "Gaussian blur, pixels"
    ),
    "noise": Augmentation(
        "noise:noise", NOISE, 1, _strength(0.05, name="deviation"), "normal noise of each pixel"
    ),
    "erase": Augmentation("noise:erase", ERASE, 5, _ERASE, "hide a rectangle"),
    "cutout": Augmentation(
        "noise:cutout", ERASE, 2, (Value("pixels", 16, 1, 256),), "hide a square"
    ),
    "mixup": Augmentation(
        "mix:mixup", MIX, 131, (Value("alpha", 0.2, 0.05, 2),), "blend images and labels in pairs"
    ),
    "cutmix": Augmentation(
        "mix:cutmix", MIX, 131, (Value("alpha", 1, 0.05, 2),), "boxes and labels of a partner"
    ),
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


EXCLUSIVE = (
    ("crop", "resizedcrop"),
    ("pad", "resizedcrop"),
    ("scale", "resizedcrop"),
    ("mixup", "cutmix"),
)


def parse(text: str) -> list[Step]:
    """Read `pad:4,crop,flip`. Raises ValueError that names the word and what is allowed."""
    if text in ("", "none"):
        return []
    steps = [_step(word.strip()) for word in text.split(",")]
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' stands twice in '{text}': name it once")
    for one, other in EXCLUSIVE:
        if one in names and other in names:
            raise ValueError(
                f"'{one}' and '{other}' exclude each other: leave one of them out of '{text}'"
            )

    return sorted(steps, key=lambda step: step.entry.stage)


def _step(word: str) -> Step:
    name, *numbers = word.split(":")
    if name not in AUGMENTATIONS:
        close = difflib.get_close_matches(name, AUGMENTATIONS, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"unknown augmentation '{name}': {hint}allowed are none, {', '.join(AUGMENTATIONS)}"
        )

    allowed = AUGMENTATIONS[name].values
    if len(numbers) > len(allowed):
        takes = ", ".join(value.name for value in allowed) or "no value"
        raise ValueError(f"'{word}' has too many values: {name} takes {takes}")

    values = [value.default for value in allowed]
    for place, (number, value) in enumerate(zip(numbers, allowed, strict=False)):
        values[place] = _number(number, value, word)
    for low, high in (("smallest area", "largest area"), ("least", "most")):
        named = {value.name: number for value, number in zip(allowed, values, strict=True)}
        if low in named and named[low] > named[high]:
            raise ValueError(f"'{word}': {low} {named[low]:g} is more than {high} {named[high]:g}")

    return Step(name, tuple(values))


def _number(text: str, value: Value, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")

    if not value.low <= number <= value.high:
        raise ValueError(
            f"'{word}': {value.name} must be a number from {value.low:g} to {value.high:g}, got "
            f"'{text}'"
        )

    return number
