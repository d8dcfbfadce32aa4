"""What a picture shows is what it was given: read back from the figure before it becomes pixels."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from common import epoch_record
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from report import contact, pictures
from report.record import EpochRecord
from training.lr_range import RangeTest


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, each after its file was written."""
    saved: list[Figure] = []
    save = pictures.save

    def keep(figure: Figure, path: Path, **more: Any) -> None:
        save(figure, path, **more)
        assert path.stat().st_size > 1000
        saved.append(figure)

    monkeypatch.setattr(pictures, "save", keep)
    return saved


def record(epoch: int, **more: Any) -> EpochRecord:
    given = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1 / epoch, "train_loss": 2 / epoch}
    given |= {"test_loss": 3 / epoch, "train_top1": 40.0 + epoch, "test_top1": 30.0 + epoch}
    return epoch_record(**(given | more))


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }


def named(axes: Any) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_curves_are_those_of_the_log(figures: list[Figure], tmp_path: Path) -> None:
    history = [record(1), record(2), record(3, test_top1=31.5)]
    pictures.curves(history, tmp_path / "c.png")
    loss, top1, rate = figures[0].axes
    # Beside each other.
    places = [axes.get_position() for axes in (loss, top1, rate)]
    assert places[0].x1 < places[1].x0 < places[1].x1 < places[2].x0
    assert places[0].y0 == pytest.approx(places[2].y0, abs=0.05)
    shown = lines(loss)
    assert shown["train"] == ([1, 2, 3], [2, 1, 2 / 3])
    assert shown["test"] == ([1, 2, 3], [3, 1.5, 1])
    assert lines(top1)["test"] == ([1, 2, 3], [31, 32, 31.5])
    assert lines(top1)["best: 32.00 %, epoch 2"] == ([2], [32])
    assert named(top1) == ["train", "test", "best: 32.00 %, epoch 2"]
    assert [*lines(rate).values()] == [([1, 2, 3], [0.1, 0.05, 0.1 / 3])]
    assert rate.get_yscale() == "log"


def test_curves_of_a_run_that_tested_nothing_mark_no_best(
    figures: list[Figure], tmp_path: Path
) -> None:
    untested = {"test_loss": None, "test_top1": None, "test_top5": None}
    pictures.curves([record(1, **untested), record(2, lr=0.0, **untested)], tmp_path / "c.png")
    _, top1, rate = figures[0].axes
    assert named(top1) == ["train", "test"]
    # A rate of 0 has no logarithm.
    assert rate.get_yscale() == "linear"


def test_a_range_test_shows_its_suggestion(figures: list[Figure], tmp_path: Path) -> None:
    rates = [1e-5 * 1.15**number for number in range(90)]
    losses = [3.0 - 0.02 * number for number in range(90)]
    found = RangeTest(rates, losses)
    pictures.lr_range(found, tmp_path / "l.png")
    shown = lines(figures[0].axes[0])
    assert shown["of each step"] == (rates, losses)
    assert shown["smoothed"] == (rates, found.smoothed)
    assert shown[f"suggested: {found.suggestion:g}"][0] == [found.suggestion] * 2


def test_few_classes_have_numbers_names_and_a_frame(figures: list[Figure], tmp_path: Path) -> None:
    matrix = np.array([[3, 1, 0, 0], [0, 1, 0, 0], [1, 0, 199, 0], [0, 0, 0, 0]])
    names = ["cat", "dog", "eel", "fox"]
    pictures.confusion(matrix, names, tmp_path / "c.png", "epoch 1")
    axes = figures[0].axes[0]
    image = axes.images[0]
    shown = image.get_array()
    # What never happened is white; a class without images has no share.
    assert shown.mask.tolist() == (matrix == 0).tolist()
    assert shown.compressed().tolist() == pytest.approx([75, 25, 100, 0.5, 99.5])
    assert type(image.norm) is Normalize
    assert (image.norm.vmin, image.norm.vmax) == (0, 100)
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    corners = [(frame.get_x(), frame.get_y()) for frame in frames]
    assert corners == [(-0.5, -0.5), (0.5, 0.5), (1.5, 1.5), (2.5, 2.5)]
    assert all((frame.get_width(), frame.get_height()) == (1, 1) for frame in frames)
    assert not any(frame.get_fill() for frame in frames)
    assert {to_hex(frame.get_edgecolor()).upper() for frame in frames} == {pictures.ORANGE}
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["cat  (4)", "dog  (1)", "eel  (200)", "fox  (0)"]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "75", (1, 0): "25", (1, 1): "100", (0, 2): "0", (2, 2): "100"}
    # Dark cells have white numbers.
    colours = {text.get_position(): text.get_color() for text in axes.texts}
    assert [colours[0, 0], colours[1, 0]] == ["white", "black"]
    assert axes.get_title() == "epoch 1"


@pytest.mark.parametrize("count", [20, 21, 120, 121])
def test_many_classes_are_told_in_other_ways(
    count: int, figures: list[Figure], tmp_path: Path
) -> None:
    matrix = 10 * np.eye(count, dtype=int)
    matrix[3, 5], matrix[7, 2] = 2, 4
    pictures.confusion(matrix, [f"c{number}" for number in range(count)], tmp_path / "c.png")
    figure = figures[0]
    axes = figure.axes[0]
    # One scale for all epochs, where single errors are seen.
    assert type(axes.images[0].norm) is (LogNorm if count > 20 else Normalize)
    assert (len(axes.patches), bool(axes.texts)) == ((count, True) if count == 20 else (0, False))
    width, height = figure.get_size_inches()
    if count <= 120:
        assert [text.get_text() for text in axes.get_xticklabels()][3] == "c3"
        assert width == height + 1
        return
    assert (width, height) == (pytest.approx(14.6), 10)
    listed = figure.axes[1]
    assert [text.get_text() for text in listed.texts] == [
        "4 x c7\n   called c2",
        "2 x c3\n   called c5",
    ]
    places = [text.get_position()[1] for text in listed.texts]
    assert places == pytest.approx([1, 1 - 1 / pictures.PAIRS])


def test_what_speaks_for_a_class_is_coloured_and_all_else_is_dark_and_grey() -> None:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    maps = draws.random((2, 5, 4))
    maps[0, 0, 0] = 0
    found = pictures.overlaid(images, maps)
    for place in np.ndindex(2, 5, 4):
        grey = sum(int(value) for value in images[place]) / 3 * 0.6
        colour = [255 * value for value in matplotlib.colormaps["inferno"](maps[place])[:3]]
        share = 0.6 * maps[place]
        wanted = [round((1 - share) * grey + share * value) for value in colour]
        assert np.abs(found[place].astype(int) - wanted).max() <= 1
    assert len(set(found[0, 0, 0].tolist())) == 1


@pytest.mark.parametrize(
    ("count", "width", "rows", "columns"), [(5, 8, 1, 5), (6, 8, 1, 6), (7, 8, 2, 6), (5, 16, 2, 4)]
)
def test_a_sheet_has_each_image_below_its_title(
    count: int, width: int, rows: int, columns: int, figures: list[Figure], tmp_path: Path
) -> None:
    images = np.arange(count * 8 * width * 3).reshape(count, 8, width, 3).astype(np.uint8)
    titles = [f"{number}.jpg\ntrue: a\nsaid: b" for number in range(count)]
    pictures.sheet(images, titles, tmp_path / "s.png", "heading")
    axes = figures[0].axes
    assert len(axes) == rows * columns
    for number, one in enumerate(axes):
        assert len(one.images) == (number < count)
        if number < count:
            assert np.array_equal(one.images[0].get_array(), images[number])
            assert one.get_title() == titles[number]
    wide, high = figures[0].get_size_inches()
    assert wide == pytest.approx(2.1 * width / 8 * columns)
    assert high == pytest.approx((2.3 + 0.18 * 2) * rows)
    assert figures[0].get_suptitle() == "heading"


@pytest.mark.parametrize(
    ("side", "cell"),
    # Enlarged by whole factors towards 112, shrunk where larger than 160.
    [
        (28, 112),
        (20, 120),
        (80, 160),
        (81, 81),
        (111, 111),
        (112, 112),
        (113, 113),
        (160, 160),
        (200, 160),
    ],
)
def test_a_sheet_of_first_images_keeps_pixels_square(side: int, cell: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, side, side, 3), dtype=np.uint8)
    titles = [f"{number}\nsecond line" for number in range(9)]
    contact.draw(images, titles, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as file:
        sheet = np.asarray(file)
    step, down = cell + 6, cell + 2 * 13 + 6
    assert sheet.shape == (2 * down + 6, 8 * step + 6, 3)
    kernel = Image.Resampling.NEAREST if side <= 160 else Image.Resampling.BILINEAR
    for number in range(9):
        row, column = divmod(number, 8)
        top, left = 6 + row * down, 6 + column * step
        wanted = np.asarray(Image.fromarray(images[number]).resize((cell, cell), kernel))
        assert np.array_equal(sheet[top : top + cell, left : left + cell], wanted)
        # Both lines of its title are black on white below it, each in its place.
        for line in range(2):
            text = sheet[top + cell + 13 * line : top + cell + 13 * (line + 1), left : left + cell]
            assert text.min() < 100
            assert text.max() == 255
    # Nothing is drawn where there is no image.
    assert (sheet[down + 6 :, 6 + step :] == 255).all()


def test_long_lines_of_a_sheet_end_in_a_dot(tmp_path: Path) -> None:
    """A line longer than its image would run into the next one's."""
    images = np.zeros((2, 112, 112, 3), np.uint8)
    for length in (17, 18, 19, 200):
        contact.draw(images, ["m" * length, ""], tmp_path / f"{length}.png")
    most = int(112 / contact.LETTER)
    assert most == 18
    cut = (tmp_path / "19.png").read_bytes()
    assert (tmp_path / "200.png").read_bytes() == cut
    assert (tmp_path / "18.png").read_bytes() != cut
    assert (tmp_path / "17.png").read_bytes() != (tmp_path / "18.png").read_bytes()
