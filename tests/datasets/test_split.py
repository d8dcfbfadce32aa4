"""Sides of a split, by images that are known."""

import zipfile
from functools import partial

import numpy as np
import pytest
from common import Terminal, within
from tqdm import tqdm

from datasets import split, zipped
from datasets.images import FileImages


def images_of(labels: list[int], classes: int) -> FileImages:
    names = [f"{number}.jpg" for number in range(len(labels))]
    return FileImages(names, np.array(labels), [f"c{k}" for k in range(classes)], "/nowhere")


def test_a_class_without_images_is_no_loss() -> None:
    every = images_of([0, 1] * 20, 3)
    sides = [split.side_of(every, part, 0.25, 1, None) for part in ("train", "test")]
    assert [len(side) for side in sides] == [30, 10]
    assert [np.bincount(side.labels).tolist() for side in sides] == [[15, 15], [5, 5]]
    assert {*sides[0].names} | {*sides[1].names} == {*every.names}


def test_reading_all_images_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(split, "tqdm", partial(tqdm, mininterval=0))
    found = split._read_all(images_of([0, 1] * 4, 2), list(range(8)))
    assert [index for index, _ in found] == list(range(8))
    assert "8/8" in terminal.getvalue()


@pytest.mark.parametrize(("system", "name"), [(3, "a\\b.jpg"), (0, "a/b.jpg"), (10, "a/b.jpg")])
def test_a_backslash_leads_down_where_it_does_on_that_system(system: int, name: str) -> None:
    info = zipfile.ZipInfo("a\\b.jpg")
    info.create_system = system
    assert zipped._name_of(info) == name


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a/b.jpg", ["a", "b.jpg"]), ("./a/b.jpg", ["a", "b.jpg"]), ("././b.jpg", ["b.jpg"])],
)
def test_a_point_is_no_folder_of_a_zip_file(name: str, parts: list[str]) -> None:
    with within(20):
        assert zipped._parts(name, "d.zip") == parts


@pytest.mark.parametrize(
    ("flags", "name", "shown"),
    [
        # What says that it is UTF-8 is taken as it says.
        (0x800, "Ã©.jpg", "Ã©.jpg"),
        (0x800, "é.jpg", "é.jpg"),
        (0x800, "├⌐.jpg", "├⌐.jpg"),
        # Written as UTF-8 without saying so, read by zipfile as cp437.
        (0, "├⌐.jpg", "é.jpg"),
        # cp437 indeed: no UTF-8.
        (0, "é.jpg", "é.jpg"),
        (0, "e.jpg", "e.jpg"),
    ],
)
def test_a_name_in_a_zip_file_is_what_was_meant(flags: int, name: str, shown: str) -> None:
    info = zipfile.ZipInfo(name)
    info.flag_bits = flags
    assert zipped._name_of(info) == shown
