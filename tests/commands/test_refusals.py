"""Wrong calls of the programs that use trained networks: one line, which says what to do."""

from pathlib import Path

import pytest
from rig import make_images, on_folder

import compare
import export
import main
import predict

PROGRAMS = {"compare": compare.main, "export": export.main, "predict": predict.main}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with one of another kind among them, a run of one epoch, and one that has
    only begun.
    """
    place = tmp_path_factory.mktemp("here")
    images = make_images(place / "images", 16)
    arguments = on_folder(images, "--batchSize", "8", "--nEpochs", "1", "--logger", "none")
    main.main([*arguments, "--expDir", str(place / "runs"), "--expID", "a"])
    begun = place / "runs" / "folder" / "b"
    begun.mkdir()
    options = place / "runs" / "folder" / "a" / "options.json"
    (begun / "options.json").write_bytes(options.read_bytes())
    (begun / "log.jsonl").write_text("")
    (place / "bad" / "class 0").mkdir(parents=True)
    (place / "bad" / "class 0" / "a.jpg").write_text("no image")
    (place / "bad" / "class 0" / "b.jpg").write_text("no image")
    return place


WEIGHTS = "{here}/runs/folder/a/best.pt"
CALLS = {
    "compare": "name runs, or a folder of runs with --sweep",
    "compare {here}/runs/folder/a --sweep {here}/runs": "name runs, or a folder of runs",
    "compare {here}/runs/folder/b": "runs/folder/b has finished no epoch yet: compare it later",
    "compare {here}/images": "{here}/images is no run's folder: options.json: No such file",
    "compare --sweep {here}/runs": "{here}/runs holds 1 runs with a finished epoch, 2 are needed",
    f"predict {WEIGHTS} - --mistakes m.png": "--mistakes takes one folder, table or container",
    f"predict {WEIGHTS} {{here}}/images {{here}}/bad --mistakes m.png": "--mistakes takes one",
    f"predict {WEIGHTS} {{here}}/images/val --top 0": "argument --top",
    f"export {WEIGHTS} {{here}}/a.onnx --to onnx --calibrate {{here}}/bad": "a.jpg",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_one_line(
    call: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = call.format(here=here).split()
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[program](arguments)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert CALLS[call].format(here=here) in said[-1]
    if "--sweep" not in call:
        assert len(said) == 1


def test_a_sweep_names_what_it_leaves_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--sweep", str(here / "runs")])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"left out: {here}/runs/folder/b has finished no epoch yet: compare it later"
    assert len(said) == 2
