"""report.html, the sheets of the first batches, and the calibration."""

import base64
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rig import make_images, on_folder

import main
from report import contact, page, record, tables
from report import report as reports
from report.page import About
from training.metrics import calibration

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Collects tags, with what they load or link to, and checks that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("rect", "line"):
            return
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, Reader]:
    text = path.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    # Nothing is loaded from elsewhere.
    for tag, attributes in reader.tags:
        for name in ("src", "href"):
            address = attributes.get(name) or ""
            assert not re.match(r"https?:|//", address), (tag, address)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
    return text, reader


def outcome(count: int, classes: int, name: str = "class") -> tables.Tested:
    draws = torch.Generator().manual_seed(classes)
    scores = torch.rand(count, classes, generator=draws).softmax(1)
    labels = torch.randint(0, classes, (count,), generator=draws)
    metrics = record.TestMetrics(1.0, 12.5, 50.0, 1.0, 20.0)
    names = [f"{name} {number}" for number in range(classes)]
    indices = np.arange(count)

    def path(index: int) -> str:
        return f"{name}/{index}.jpg"

    return tables.Tested(metrics, scores, labels, indices, names, path, lambda k: torch.empty(0))


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_a_page_of_many_classes_has_a_row_each(classes: int, tmp_path: Path) -> None:
    page.write(tmp_path, About("a run"), page.found(outcome(2 * classes, classes), 3), 5)
    text, reader = read(tmp_path / "report.html")
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert body.count("<tr>") == classes
    assert "Test top-1 12.50 % in epoch 3, the best of 5." in text
    assert sum(attributes.get("class") == "sorts" for _, attributes in reader.tags) == 8


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    about = About(EVIL, {"data": EVIL}, [("data_dir", EVIL, "none")], [(EVIL, EVIL)])
    page.write(tmp_path, about, page.found(outcome(40, 3, EVIL)))
    text, reader = read(tmp_path / "report.html")
    assert EVIL not in text
    assert html.escape(EVIL, quote=False)[:14] in text
    assert [tag for tag, _ in reader.tags].count("script") == 1


def test_a_run_leaves_a_page_with_its_pictures_and_links(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 48)
    more = ["--nEpochs", "2", "--expDir", str(tmp_path), "--LR", "0.001", "--batchSize", "8"]
    main.main(on_folder(images, *more))
    run = tmp_path / "folder" / "alexnetbn"
    text, reader = read(run / "report.html")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = max(log, key=lambda line: line["test_top1"])
    assert f"Test top-1 {best['test_top1']:.2f} % in epoch {best['epoch']}" in text
    # All that it shows is of the best epoch.
    assert (run / f"confusion_{best['epoch']}.png").exists()
    # Curves, confusion, first batch, first test batch, and mistakes where there are some.
    pictures = sum(tag == "img" for tag, _ in reader.tags)
    assert pictures == 4 + (run / "mistakes.png").exists()
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    wrong = len((run / "mistakes.csv").read_text().splitlines()) - 1
    assert len(links) == wrong
    assert all(Path((link or "").removeprefix("file://")).is_file() for link in links)
    for option in ("--LR", "--data_dir", "--imageSize"):
        assert f"<td>{option}</td>" in text
    assert "<td>--expID</td>" not in text
    assert "--mistakes wrong.csv" in text


def test_the_first_batches_are_drawn_with_their_classes(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 24)
    main.main(on_folder(images, "--nEpochs", "1", "--expDir", str(tmp_path)))
    run = tmp_path / "folder" / "alexnetbn"
    for name in ("first_batch.png", "test_batch.png"):
        with Image.open(run / name) as sheet:
            assert sheet.width == contact.COLUMNS * (20 * 6 + contact.MARGIN) + contact.MARGIN


def test_a_sheet_shows_each_image_in_its_place(tmp_path: Path) -> None:
    images = np.zeros((10, 112, 112, 3), np.uint8)
    images[:, :, :, 0] = 20 * np.arange(10)[:, None, None]
    contact.draw(images, [f"image {number}" for number in range(10)], tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet)
    step = 112 + contact.MARGIN
    for number in range(10):
        row, column = divmod(number, contact.COLUMNS)
        y = contact.MARGIN + row * (step + contact.LINE) + 50
        assert pixels[y, contact.MARGIN + column * step + 50].tolist() == [20 * number, 0, 0]


def test_long_names_that_begin_alike_are_told_apart_by_what_fits(tmp_path: Path) -> None:
    images = np.zeros((2, 112, 112, 3), np.uint8)
    sheets = []
    for name in ("golden_retriever_puppy_long", "labrador_retriever_puppy_long"):
        contact.draw(images, [name, f"{name}\nsaid: {name}"], tmp_path / "s.png")
        sheets.append((tmp_path / "s.png").read_bytes())
    assert sheets[0] != sheets[1]


def test_the_calibration_error_is_the_papers() -> None:
    # Four images said at 0.9, of which three are right; two at 0.6, of which none is.
    scores = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 0, 0])
    error, bins = calibration(scores, labels)
    assert error == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.6)
    assert [(round(b.confidence, 6), b.accuracy, b.count) for b in bins] == [
        (0.6, 0.0, 2),
        (0.9, 0.75, 4),
    ]
    assert calibration(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)) == (0.0, [])


def test_a_page_shows_so_many_mistakes(tmp_path: Path) -> None:
    tested = outcome(600, 10)
    shown = page.found(tested)
    assert shown.wrong > page.MAX_MISTAKES == 200
    assert len(shown.mistakes) == 200
    page.write(tmp_path, About("a run"), shown)
    text, _ = read(tmp_path / "report.html")
    assert "These are the first 200; mistakes.csv has all." in text
    few = page.found(outcome(20, 10))
    page.write(tmp_path, About("a run"), few)
    assert "These are the first" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("epoch", "names", "taken"),
    [
        (None, ["confusion.png", "confusion_3.png"], "confusion.png"),
        (3, ["confusion.png", "confusion_3.png", "confusion_5.png"], "confusion_3.png"),
        # Not each epoch's is drawn: the newest, then.
        (4, ["confusion_3.png", "confusion_5.png"], "confusion_5.png"),
        (4, [], None),
    ],
)
def test_a_page_shows_the_confusion_of_its_epoch(
    epoch: int | None, names: list[str], taken: str | None, tmp_path: Path
) -> None:
    for number, name in enumerate([*names, "curves.png"]):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (number, number))
    shown = {
        name: base64.b64decode(v).decode() for name, v in page._pictures(tmp_path, epoch).items()
    }
    assert shown.pop("curves.png") == "curves.png"
    assert shown == ({} if taken is None else {"confusion": taken})


@pytest.mark.parametrize("most", [9, 10])
def test_confusions_of_few_classes_are_all_written_down(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_CONFUSION", most)
    reports.Report(tmp_path, {})._write_tables(outcome(50, 10), None)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"classes.csv", "mistakes.csv"} | ({"confusion.csv"} if most == 10 else set())


def test_a_class_is_named_that_most_are_taken_for() -> None:
    names = ["cat", "dog", "eel"]
    # Three cats, of which two are called eels; dogs are right; an eel is called a dog.
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    scores = torch.eye(3)[torch.tensor([2, 2, 0, 1, 1, 1])]
    metrics = record.TestMetrics(1.0, 50.0, 100.0, 1.0, 20.0)
    tested = tables.Tested(
        metrics, scores, labels, np.arange(6), names, str, lambda k: torch.empty(0)
    )
    heading, rows = tables.class_rows(tested)
    found = [dict(zip(heading, row, strict=True)) for row in rows]
    assert [row["confused_with"] for row in found] == ["eel", "", "dog"]
    assert [row["images"] for row in found] == ["3", "2", "1"]
    assert [row["top1"] for row in found] == ["33.3333", "100.0000", "0.0000"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        *(("12.3456", "12.35"), ("100.0000", "100.00"), ("0.0049", "0.00")),
        # Names and counts stay as they are.
        *(
            ("12", "12"),
            ("v1.25", "v1.25"),
            ("1.5", "1.5"),
            ("1.12345", "1.12345"),
            ("a.bcde", "a.bcde"),
        ),
        *((".1234", ".1234"), ("", "")),
    ],
)
def test_a_page_shows_two_decimals(cell: str, shown: str) -> None:
    assert page._brief(cell) == shown


@pytest.mark.parametrize(
    ("top1", "epoch", "said"),
    [
        (None, None, "Nothing could be tested."),
        (12.345, None, "Test top-1 12.35 %, of 20 images."),
        (99.0, 3, "Test top-1 99.00 % in epoch 3, the best of 7."),
    ],
)
def test_a_page_begins_with_the_result(top1: float | None, epoch: int | None, said: str) -> None:
    found = page.Found(20, top1, [], [], 0, [], 0.0, [], epoch)
    assert page._lead(found, 7) == said
