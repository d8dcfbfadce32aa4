"""Awkward folders at random: what is found in them is what docs/datasets.md says, no more, no less.

The rules are written down here a second time, as plainly as possible and from the documentation
alone. Each folder is read without a kept listing, twice with one, and again after random changes.
"""

import io
import os
import random
import shutil
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import scratch, script

from base.errors import Refused
from datasets import folder

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
KINDS = {name: kind for kind, names in SPELLINGS.items() for name in names}
IMAGES = [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
SYSTEMS = [
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "__MACOSX",
    ".ipynb_checkpoints",
]
SHARE = 0.25
KEPT = "kept.jpg"  # one test image that no change removes

# ------------------------------------------------------------------------------- the rules


class No(Exception):
    """The rules refuse this folder."""


@dataclass
class Answer:
    """What is in a part; a file may be there twice, by way of a link to its folder."""

    classes: list[str]
    files: dict[str, Counter[str]]  # by class
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def sizes(self) -> list[int]:
        return [self.files[name].total() for name in self.classes]


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def is_image(path: Path) -> bool:
    """True for what lies there as an image by its name; it may be a link that leads nowhere."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in IMAGES and not path.is_dir()


def is_passed_by(name: str) -> bool:
    """True for the name of a folder that is hidden or a system's own."""
    return name.startswith(".") or name in SYSTEMS


def folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not is_passed_by(path.name))


def has_images(place: Path) -> bool:
    return any(is_image(path) for path in place.iterdir())


def has_images_below(place: Path) -> bool:
    return any(has_images(child) or has_images_below(child) for child in folders(place))


def key(path: Path) -> str:
    """Return where a file lies in truth, without following the file itself."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def kind_of(place: Path) -> str | None:
    """Return which part a folder is: "train", "val", "test" or none.

    It has the name of a part, and folders in it, unless it has images itself and none below them.
    """
    kind = KINDS.get(place.name.lower())
    if kind is None or not folders(place):
        return None
    return None if has_images(place) and not has_images_below(place) else kind


def parts_in(place: Path) -> list[Path]:
    return [child for child in folders(place) if kind_of(child)]


def unwrapped(data: Path) -> Path:
    """Pass through one folder around everything: around parts, or around classes."""
    if len(folders(data)) != 1:
        return data
    (only,) = folders(data)
    around_classes = kind_of(only) is None and folders(only) and not has_images(only)
    return only if parts_in(only) or around_classes else data


def find_parts(data: Path) -> dict[str, Path]:
    """Return the parts by kind; empty if the folders are classes. Raises No."""
    found: dict[str, Path] = {}
    for place in parts_in(data):
        kind = kind_of(place)
        assert kind is not None
        if kind in found:
            raise No("two folders for one part")
        inner = folders(place)
        if len(inner) == 1 and kind_of(inner[0]) == kind:
            place = inner[0]  # val/val/<class>
        found[kind] = place
    return found


def read_class(place: Path) -> tuple[Counter[str], Counter[str]]:
    """Return the images of a class, however deep, and what is left out."""
    files: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for where, below, names in os.walk(place):
        left_out.update(f"{name}/" for name in below if is_passed_by(name))
        below[:] = [name for name in below if not is_passed_by(name)]
        for name in names:
            path = Path(where, name)
            if is_image(path):
                files[key(path)] += 1
            else:
                left_out[why_left_out(name)] += 1
    return files, left_out


def why_left_out(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    return Path(name).suffix.lower() or "without ending"


def read_part(place: Path) -> Answer:
    """Return the classes of a part in order, their images, and what is left out. Raises No."""
    answer = Answer([], {})
    for path in place.iterdir():
        if not path.is_dir():
            beside = is_image(path)
            answer.left_out["beside the classes" if beside else why_left_out(path.name)] += 1
        elif is_passed_by(path.name):
            answer.left_out[f"{path.name}/"] += 1
        else:
            files, left_out = read_class(path)
            answer.files[composed(path.name)] = answer.files.get(composed(path.name), Counter())
            answer.files[composed(path.name)] += files  # both forms of a name are one class
            answer.left_out += left_out
    answer.classes = sorted(answer.files)
    if len({name.casefold() for name in answer.classes}) < len(answer.classes):
        raise No("names differ in case only")
    return answer


def training(place: Path) -> Answer:
    answer = read_part(place)
    if not all(answer.sizes):
        raise No("a class without a training image")
    if len(answer.classes) < 2:
        raise No("fewer than two classes")
    return answer


def answer_train(data: Path) -> Answer:
    parts = find_parts(unwrapped(data))
    if "train" not in parts:
        raise No("no training part")
    return training(parts["train"])


def answer_test(data: Path) -> Answer:
    """Return the part that is tested on, with the classes of the training part."""
    known = answer_train(data).classes
    parts = find_parts(unwrapped(data))
    place = parts.get("val", parts.get("test"))
    if place is None:
        raise No("no test part")
    answer = read_part(place)
    if not set(answer.classes) <= set(known):
        raise No("a class that training lacks")
    files = {name: answer.files.get(name, Counter()) for name in known}
    return Answer(known, files, answer.left_out)


def answer_split(data: Path) -> Answer:
    """Return both sides of a folder that is split, taken together."""
    place = unwrapped(data)
    parts = find_parts(place)
    if "train" in parts and len(parts) > 1:
        raise No("a split of its own")
    if parts and "train" not in parts:
        raise No("no training part")
    answer = training(parts.get("train", place))
    if min(answer.sizes) < 2:
        raise No("a class that cannot be split")
    return answer


def expected(data: Path) -> dict[str, Answer | No]:
    """Return what the rules say, by question. Not every question makes sense for every folder."""
    found: dict[str, Answer | No] = {}

    def ask(question: str, rule: Callable[[Path], Answer]) -> None:
        try:
            found[question] = rule(data)
        except No as reason:
            found[question] = reason

    ask("split", answer_split)
    if parts_in(unwrapped(data)):  # else it is for splitting only
        ask("train", answer_train)
        if isinstance(found["train"], Answer):
            ask("test", answer_test)
    return found


# ----------------------------------------------------------------------------- the product


def opened(
    data: Path, part: str, classes: list[str] | None, share: float | None, index: Path | None
) -> Answer:
    images = folder.open_folder(
        str(data), part, classes=classes, val_share=share, seed=1, split_file=None, index=index
    )
    found = Answer(list(images.classes), {name: Counter() for name in images.classes})
    found.left_out = Counter(images.left_out)
    for name, label in zip(images.names, images.labels.tolist(), strict=True):
        found.files[images.classes[label]][key(Path(images.where, name))] += 1
    return found


def asked(question: str, data: Path, index: Path | None) -> Answer:
    """Open the part or parts of one question. Raises Refused."""
    if question == "split":
        answer = opened(data, "train", None, SHARE, index)
        other = opened(data, "test", answer.classes, SHARE, index)
        assert other.classes == answer.classes
        for name in answer.classes:
            if not answer.files[name] and not are_copies(other.files[name]):
                raise AssertionError(f"the training side has no image of {name}")
            answer.files[name] += other.files[name]
        return answer
    classes = None
    if question == "test":
        classes = opened(data, "train", None, None, index).classes
    return opened(data, question, classes, None, index)


def are_copies(files: Counter[str]) -> bool:
    """True if all of a class are one image, which can only be on one side."""
    return len({Path(file).read_bytes() for file in files if Path(file).is_file()}) < 2


def difference(question: str, right: Answer | No, data: Path, index: Path | None) -> str:
    """Ask the product; return how it differs from the rules, or nothing."""
    try:
        found = asked(question, data, index)
    except Refused as refusal:
        return "" if isinstance(right, No) else f"refused: {refusal}"
    except Exception as error:
        return f"crashed: {error!r}"
    if isinstance(right, No):
        return f"not refused, in spite of: {right}"
    if found.classes != right.classes:
        return f"classes {found.classes}, not {right.classes}"
    for name in right.classes:
        lacks, more = right.files[name] - found.files[name], found.files[name] - right.files[name]
        if lacks or more:
            return f"class {name} lacks {sorted(lacks)}, has {sorted(more)}"
    if found.left_out != right.left_out:
        return f"left out {dict(found.left_out)}, not {dict(right.left_out)}"
    return ""


# ----------------------------------------------------------------------------- the folders


def contents() -> list[bytes]:
    """Return one small image of each format, a JPEG with an orientation, and what is no image."""
    found = []
    picture, exif = Image.new("RGB", (5, 4), "red"), Image.Exif()
    exif[0x0112] = 6
    for kind, more in (
        ("JPEG", {}),
        ("JPEG", {"exif": exif}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (5, 4), "blue")]}),
        ("TIFF", {}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **more)
        found.append(buffer.getvalue())
    return [*found, b"", b"no image"]


NAMES = ["bus", "car", "dog", "train", "test", "val", "Testing", "10", "9", "Zebra", "a.jpg"]
NAMES += ["caf\u00e9", "\u00c5ngstr\u00f6m", "\u00e9", "\uac00\ub098", "\u65e5\u672c", "x y", "e"]
OTHERS = [".heic", ".HEIC", ".txt", ".Csv", ".db", ".jpg_large", ".mp4", ".jpg.part", ".json"]


class Maker:
    """Makes one folder at random, and changes it."""

    def __init__(self, data: Path, pick: random.Random, files: list[bytes]) -> None:
        self.data, self.pick, self.files = data, pick, files
        self.count = 100  # above the classes that are numbers
        self.parts: list[Path] = []  # folders that hold classes
        self.around_classes = False  # one folder around classes: with images beside, it is a class
        data.mkdir(parents=True)
        self._make()

    def chance(self, share: float) -> bool:
        return self.pick.random() < share

    def any_case(self, text: str) -> str:
        way = self.pick.randrange(5)
        if way < 3:
            return (text, text.upper(), text.capitalize())[way]
        return "".join(self.pick.choice((a.lower(), a.upper())) for a in text)

    def image_name(self) -> str:
        self.count += 1
        stem = self.pick.choice(("", "photo ", "2.5.", "u\u0308", "\u00fc", "a.png.", "#"))
        return f"{stem}{self.count}{self.any_case(self.pick.choice(IMAGES))}"

    def other_name(self) -> str:
        self.count += 1
        ending = self.pick.choice([*OTHERS, "", ""])
        hidden = self.pick.choice((f"._{self.count}.jpg", f".{self.count}", ".DS_Store"))
        return hidden if self.chance(0.3) else f"{self.count}{ending}"

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = b"" if self.chance(0.1) else b"%d" % self.count  # else there are copies
        path.write_bytes(self.pick.choice(self.files) + own)
        return path

    def _make(self) -> None:
        top = self.data
        if self.chance(0.15):
            top = self.data / self.pick.choice(("photos", "My data", "train", "set.jpg"))
            top.mkdir()
            if self.chance(0.5):
                self.write(self.data / "__MACOSX" / "._a.jpg")
                self.write(self.data / "README.txt")
        names = self.pick.sample(NAMES, self.pick.randint(2, 5))
        if self.chance(0.3):
            if top.name == "train":  # that would be the part itself
                top = top.rename(self.data / "photos")
            self.around_classes = top != self.data
            self.fill_part(top, names, 2)
            return
        kinds = [["train", "val"], ["train", "val", "test"], ["train", "test"], ["train"], ["val"]]
        chosen = self.pick.choices(kinds, [6, 3, 3, 3, 0 if top.name == "train" else 0.5])[0]
        for kind in chosen:
            twice = self.chance(0.04)
            for name in self.pick.sample(SPELLINGS[kind], 2 if twice else 1):
                place = top / self.any_case(name)
                if self.chance(0.07) and top == self.data:
                    place /= place.name
                self.fill_part(place, self.names_for(kind, names), 2 if kind == "train" else 0)
                if kind != "train":
                    self.keep(place, names)
        if self.chance(0.3):
            self.write(top / "extra" / "more" / "1.jpg")
            self.write(top / self.image_name())
        if self.chance(0.2):
            self.write(top / self.pick.choice(SYSTEMS) / "1.jpg")
        beside = top / self.any_case(self.pick.choice(list(KINDS)))
        if self.chance(0.1) and not beside.exists():  # no part: it has no folders
            self.write(beside / self.image_name())

    def names_for(self, kind: str, names: list[str]) -> list[str]:
        if kind == "train":
            return names
        some = self.pick.sample(names, self.pick.randint(1, len(names)))
        return [*some, "unknown"] if self.chance(0.04) else some

    def keep(self, place: Path, names: list[str]) -> None:
        """Leave an image in a test part that has else perhaps none, and no change removes it."""
        forms = {composed(path.name): path for path in place.iterdir() if path.is_dir()}
        name = next(name for name in names if name in forms)
        (forms[name] / KEPT).write_bytes(self.files[0])

    def form(self, name: str) -> str:
        return unicodedata.normalize(self.pick.choice(("NFC", "NFD")), name)

    def fill_part(self, place: Path, names: list[str], least: int) -> None:
        self.parts.append(place)
        for name in names:
            few = 0 if self.chance(0.02) else self.pick.randint(least, 5)
            self.fill_class(place / self.form(name), few)
            if name != unicodedata.normalize("NFD", name) and self.chance(0.15):
                for form in ("NFC", "NFD"):
                    self.fill_class(place / unicodedata.normalize(form, name), 1)
        if self.chance(0.05):
            self.fill_class(place / self.form(self.pick.choice(names).swapcase()), 2)
        if self.chance(0.3) and not self.around_classes:
            self.write(place / self.image_name())
        for _ in range(self.pick.choice((0, 0, 1, 3))):
            self.write(place / self.other_name())
        if self.chance(0.2):
            self.write(place / self.pick.choice([*SYSTEMS, ".cache"]) / "deep" / "1.jpg")
        if self.chance(0.1):
            self.link_class(place)
        if self.chance(0.03):
            (place / "lost link").symlink_to("nowhere")

    def fill_class(self, place: Path, images: int) -> None:
        """Put images into a class; one with the name of a part holds them directly."""
        place.mkdir(parents=True, exist_ok=True)
        direct = place.name.lower() in KINDS
        for _ in range(images):
            self.write((place if direct else self.deep(place)) / self.image_name())
        if direct and images and self.chance(0.3):
            (place / "empty").mkdir(exist_ok=True)
        for _ in range(self.pick.choice((0, 0, 1, 4))):
            self.write(place / self.other_name())
        if self.chance(0.2):
            below = place if direct else self.deep(place)
            self.write(below / self.pick.choice([*SYSTEMS, ".cache", ".git"]) / "x.jpg")
        if images and self.chance(0.2):
            self.link_file(place)

    def deep(self, place: Path) -> Path:
        for _ in range(self.pick.choice((0, 0, 0, 1, 3))):
            place /= self.pick.choice(("2019", "2020", "b.png", "u\u0308", "train"))
        return place

    def link_file(self, place: Path) -> None:
        """Add a link to an image of this folder, to nothing, or to itself."""
        self.count += 1
        path = place / f"link {self.count}{self.pick.choice(('.jpg', '.PNG', '.txt', ''))}"
        targets = sorted(other for other in self.data.rglob("*") if is_image(other))
        way = self.pick.randrange(4)
        if way < 2 and targets:
            target = os.path.relpath(self.pick.choice(targets), place)
            path.symlink_to(target if way else os.path.abspath(place / target))
        else:
            path.symlink_to("nowhere.jpg" if way == 2 else path.name)

    def link_class(self, place: Path) -> None:
        """Add a class that is a link to another class, of this part or of another."""
        targets = self.classes()
        if targets:
            path = place / "linked"
            path.unlink(missing_ok=True)
            path.symlink_to(os.path.relpath(self.pick.choice(targets), place))

    # ------------------------------------------------------------------------- changes

    def classes(self) -> list[Path]:
        return [
            child
            for part in self.parts
            if part.exists()
            for child in folders(part)
            if not child.is_symlink()
        ]

    def places(self, below: bool) -> list[Path]:
        """Return the folders of classes; below: only those that may get a folder themselves."""
        found = []
        for place in self.classes():
            if place.name.lower() not in KINDS:
                found += [place, *sorted(path for path in place.rglob("*") if is_folder(path))]
            elif not below:
                found.append(place)  # with images further below it would be a part
        return found

    def some_file(self) -> Path:
        """Return a file or a link of a class; a new one if there is none."""
        found = [
            path
            for place in self.places(below=False)
            for path in place.iterdir()
            if not is_folder(path) and path.name != KEPT
        ]
        new = self.pick.choice(self.places(below=False)) / self.image_name()
        return self.pick.choice(sorted(found)) if found else self.write(new)

    def change(self) -> None:
        """Change something."""
        pick = self.pick
        way = pick.randrange(12)
        if way < 2:
            self.write(pick.choice(self.places(below=False)) / self.image_name())
        elif way == 2:
            self.write(pick.choice(self.places(below=False)) / self.other_name())
        elif way == 3:
            self.some_file().unlink()
        elif way == 4:
            path = self.some_file()
            path.rename(path.with_name(pick.choice((self.image_name(), self.other_name()))))
        elif way == 5:
            path = self.some_file()
            path.rename(pick.choice(self.places(below=False)) / self.image_name())
        elif way == 6:
            self.replace_by_folder()
        elif way == 7:
            self.swap()
        elif way == 8:
            part = pick.choice(self.parts)
            self.fill_class(part / f"new {len(list(part.iterdir()))}", pick.randint(0, 3))
        elif way == 9:
            self.remove_class()
        elif way == 10:
            self.link_class(pick.choice(self.parts))
        elif not self.around_classes:
            self.write(pick.choice(self.parts) / self.image_name())

    def replace_by_folder(self) -> None:
        """Put a folder of the same name in the place of a file that no link leads to."""
        linked = {os.path.realpath(path) for path in self.data.rglob("*") if path.is_symlink()}
        files = [
            path
            for place in self.places(below=True)
            for path in place.iterdir()
            if not is_folder(path) and path.name not in (KEPT, ".DS_Store")
            if os.path.realpath(path) not in linked
        ]
        if files:
            path = self.pick.choice(sorted(files))
            path.unlink()
            self.write(path / self.image_name())

    def swap(self) -> None:
        """Exchange the names of two folders; of the three only their parent looks changed."""
        parents = [*self.parts, *self.places(below=True)]
        self.pick.shuffle(parents)
        for parent in parents:
            children = [path for path in parent.iterdir() if is_folder(path)]
            children = [path for path in sorted(children) if path.name.lower() not in KINDS]
            if len(children) > 1:
                one, other = self.pick.sample(children, 2)
                aside = one.rename(parent / "aside")
                other.rename(one)
                aside.rename(other)
                return

    def remove_class(self) -> None:
        """Remove or hide a class of a part that has some more."""
        part = self.pick.choice(self.parts)
        own = [place for place in self.classes() if place.parent == part]
        own = [place for place in own if not any(place.rglob(KEPT))]
        if len(own) > 3:
            place = self.pick.choice(own)
            if self.chance(0.5):
                shutil.rmtree(place)
            elif not place.with_name(f".{place.name}").exists():
                place.rename(place.with_name(f".{place.name}"))


def is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def age(data: Path, round_: int, pick: random.Random) -> None:
    """Let what was changed in the last minute have been changed long ago, but after the last round.

    Half of the time all folders have one time, as if they came from one archive.
    """
    now = time.time()
    alike = pick.random() < 0.5
    for place in [data, *(path for path in data.rglob("*") if is_folder(path))]:
        if place.stat().st_mtime > now - 60:
            then = now - 10_000 + 1000 * round_ + (0 if alike else pick.uniform(0, 500))
            os.utime(place, (then, then))


# ----------------------------------------------------------------------------- the campaign


def readings(data: Path, maker: Maker, index: Path) -> Iterator[tuple[str, Path | None]]:
    """Prepare each reading of one folder; yield what it is, and where its listing is kept."""
    age(data, 0, maker.pick)
    yield "without a listing", None
    yield "first listing", index
    yield "kept listing", index
    for round_ in (1, 2):
        for _ in range(maker.pick.randint(1, 4)):
            maker.change()
        yield f"after change {round_}, without a listing", None
        yield f"after change {round_}, kept listing", index
        age(data, round_, maker.pick)
        yield f"after change {round_} and a while", index


def run(trials: int = 300, seed: int = 1, show: int = 5) -> dict[str, Any]:
    """Count the folders in which anything differs from the rules; tell the first `show` ones."""
    counts: dict[str, Any] = {"trials": trials, "wrong": 0, "answers": 0, "listings_kept": 0}
    refusals: Counter[str] = Counter()
    differences: list[str] = []
    files = contents()
    with scratch() as base:
        for trial in range(trials):
            pick = random.Random(f"{seed} {trial}")
            data, index = base / f"{trial}" / "data", base / f"{trial}" / "index"
            index.mkdir(parents=True)
            maker = Maker(data, pick, files)
            wrong = ""
            answers: dict[str, Answer | No] = {}
            for reading, kept in readings(data, maker, index):
                answers = answers if kept else expected(data)  # each round begins without a listing
                for question, right in answers.items():
                    counts["answers"] += 1
                    if isinstance(right, No):
                        refusals[str(right)] += 1
                    text = difference(question, right, data, kept)
                    if text and not wrong:
                        wrong = f"trial {trial}, {question}, {reading}: {text}"
            counts["wrong"] += bool(wrong)
            if wrong:
                differences.append(wrong.replace(str(data), "D"))
            counts["listings_kept"] += any(index.iterdir())
            shutil.rmtree(base / f"{trial}")
    return counts | {"refusals": dict(sorted(refusals.items())), "differences": differences[:show]}


if __name__ == "__main__":
    script("14 odd data", run, 300)
