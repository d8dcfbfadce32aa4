"""Pictures of what the network sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preparation import sheet


@pytest.mark.parametrize(("height", "scale"), [(5, 19), (48, 2), (49, 1), (200, 1)])
def test_rows_are_images_and_columns_draws(height: int, scale: int, tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 250, (2, 3, 3, height, 7), dtype=torch.uint8, generator=draws)
    sheet.save(images, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as file:
        found = np.asarray(file)
    rows, columns = 2 * height + 2, 3 * 7 + 2 * 2
    assert found.shape == (rows * scale, columns * scale, 3)
    # Small ones are enlarged by whole factors.
    small = found[::scale, ::scale]
    assert np.array_equal(found, small.repeat(scale, 0).repeat(scale, 1))
    wanted = np.full((rows, columns, 3), 255, np.uint8)
    for row, column in np.ndindex(2, 3):
        top, left = row * (height + 2), column * 9
        pixels = images[row, column].permute(1, 2, 0).numpy()
        wanted[top : top + height, left : left + 7] = pixels
    assert np.array_equal(small, wanted)


def test_eight_images_are_drawn_eight_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "synthetic", "--synthetic", "32:4:20", "--imageSize", "20"]
    out = tmp_path / "s.png"
    sheet.main([*words, "--cropSize", "16", "--augment", "crop", "--out", str(out)])
    assert f"{out}: 8 images, a row each, 8 draws of crop\n" in capsys.readouterr().out
    with Image.open(out) as file:
        found = np.asarray(file)[::6, ::6]
    assert found.shape == (8 * 18 - 2, 8 * 18 - 2, 3)
    inside = np.flatnonzero(np.arange(len(found)) % 18 < 16)
    cells = found[np.ix_(inside, inside)]
    cells = cells.reshape(8, 16, 8, 16, 3).swapaxes(1, 2)
    # Other crops of one image in a row, and other images in the rows.
    for row in cells:
        assert len({cell.tobytes() for cell in row}) > 3
    assert len({row[0].tobytes() for row in cells}) == 8


def test_a_picture_has_a_folder_to_lie_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        sheet.main(["--dataset", "synthetic", "--out", str(tmp_path / "none" / "s.png")])
    assert stop.value.code == 2
    assert f"--out: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_a_sheet_s_help_names_its_own_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sheet.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--out OUT  the picture" in said
    assert "--augment STR" in said


def test_a_wrong_option_of_a_sheet_names_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sheet.main(["--dataset", "minst"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("transforms.py: error: argument --dataset: 'minst'")
