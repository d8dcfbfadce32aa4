"""What a run says of itself, where it could be read wrongly."""

import re
from pathlib import Path

import pytest

import main
from assembly import header
from base.errors import Refused


def test_a_header_says_what_a_run_will_take_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--nEpochs", "7", "--snapshot", "2", "--keep", "2", "--ema", "0.5"]
    command = ["--dataset", "synthetic", "--synthetic", "64:3:32", "--netType", "alexnetbn"]
    command += ["--imageSize", "32", "--cropSize", "32", "--batchSize", "32", "--GPU", "-1"]
    main.main([*command, *more, "--expDir", str(tmp_path / "small")])
    assert not re.search(r"^disk ", capsys.readouterr().out, re.MULTILINE)

    monkeypatch.setattr(header, "LARGE", 1)
    main.main([*command, *more, "--expDir", str(tmp_path / "large")])
    told = re.search(r"^disk +([\d.]+) GB in the end: 2 .* 5 files", capsys.readouterr().out, re.M)
    assert told
    there = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.pt"))
    assert float(told[1]) * 1e9 == pytest.approx(there, rel=0.05)


def test_a_line_a_step_has_this_step_s_seconds_and_its_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--dataset", "synthetic", "--synthetic", "256:3:32", "--netType", "alexnetbn"]
    command += ["--imageSize", "32", "--cropSize", "32", "--batchSize", "8", "--GPU", "-1"]
    main.main([*command, "--nEpochs", "1", "--verbose", "--expDir", str(tmp_path)])
    out = capsys.readouterr().out
    form = r"top-1 err ([\d.]+) %; this step: lr \S+; data ([\d.]+) s; forward-backward ([\d.]+) s"
    steps = [tuple(map(float, found)) for found in re.findall(form, out)]
    assert len(steps) == 32
    # Sums of the epoch so far would only grow.
    assert steps[-1][2] < sum(seconds for _, _, seconds in steps) / 2
    assert sum(data + seconds for _, data, seconds in steps) > 0
    # Of three classes five are never wrong.
    assert "top-5" not in out
    assert re.search(r"^finished: best test top-1", out, re.MULTILINE)


def test_no_gpu_is_said_when_a_run_begins_and_not_of_one_that_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refused):
        main.main(["--dataset", "folder", "--data_dir", str(tmp_path), "--expDir", str(tmp_path)])
    assert "GPU" not in capsys.readouterr().out
