"""Each wrong option, and each two that exclude or need each other, is one line of status 2 that
names them and the way out. What is beside it and right is taken.
"""

import json
from pathlib import Path

import pytest

import opts
from options.settle import differing, settle_by_images

FOLDER = "--dataset folder --data_dir ."
# A call, and what its line says; after | calls that differ little from it and are right.
WRONG = {
    # One option.
    "--saveEvery 3y": "argument --saveEvery:",
    "--patience 0": "argument --patience: | --patience 1 | --patience loss:3",
    "--patience top1:x": "argument --patience:",
    "--synthetic 512:10": "'512:10' is not IMAGES:CLASSES:PIXELS | --synthetic 512:10:64",
    "--synthetic 512:10:0": "'512:10:0' is not IMAGES:CLASSES:PIXELS | --synthetic 1:1:64",
    "--synthetic 512:10:x": "'512:10:x' is not IMAGES:CLASSES:PIXELS",
    "--dataset table --labels x --column what=name": "argument --column:",
    f"{FOLDER} --fold 3/2": f"argument --fold: | {FOLDER} --fold 2/2",
    "--freeze half": "argument --freeze: 'half' is neither `features` nor a number | "
    "--freeze features | --freeze 1",
    "--freeze 0": "argument --freeze: '0' is neither `features` nor a number",
    f"{FOLDER} --valShare 0": f"--valShare: 0 is not between 0 and 1 | {FOLDER} --valShare 0.01",
    f"{FOLDER} --valShare 1": f"--valShare: 1 is not between 0 and 1 | {FOLDER} --valShare 0.99",
    "--labelSmoothing 1": "--labelSmoothing: 1 is not from 0 to below 1 | --labelSmoothing 0.99",
    "--ema 1": "--ema: 1 is not from 0 to below 1 | --ema 0.99 | --ema 0",
    "--dataset minst": "argument --dataset: 'minst' is not | --dataset mnist",
    "--dataset a/b --storage ram": "'a/b' cannot be the name of a folder | "
    "--dataset a --storage ram",
    "--dataset .a --storage ram": "'.a' cannot be the name of a folder",
    "--expID a/b": "argument --expID: 'a/b' cannot be the name of a folder | --expID a.b",
    "--expID ..": "argument --expID: '..' cannot be the name of a folder",
    # Two together.
    "--dataset mnist --test": "--test needs the weights to test | "
    "--dataset mnist --test --retrain x | --dataset mnist --test --pretrained",
    "--dataset mnist --test --retrain x --continue": "--test needs the weights to test",
    "--dataset mnist --findLR --continue": "--findLR begins a run of its own | "
    "--dataset mnist --findLR",
    "--dataset mnist --findLR --test --retrain x": "--findLR begins a run of its own",
    f"{FOLDER} --test --retrain x --fold 1/2": "--fold is of training: leave it out",
    f"{FOLDER} --findLR --folds 2": f"--folds is of training: leave it out | {FOLDER} --folds 2",
    "--continue --overwrite": "--continue keeps the run, --overwrite removes it",
    "--flipTest --tenCrop": "--tenCrop has the mirror images of all its crops | "
    "--flipTest | --tenCrop",
    "--fit pad --tenCrop": "--fit pad shows all of an image, --tenCrop parts | --fit pad",
    "--pretrained --retrain x": "--pretrained and --retrain exclude each other | --pretrained",
    f"{FOLDER} --part test": f"--part test is of --test on a folder | "
    f"{FOLDER} --test --retrain x --part test",
    "--dataset mnist --test --retrain x --part test": "--part test is of --test on a folder",
    "--dataset mnist --valShare 0.1": f"mnist has test images of its own | {FOLDER} --valShare 0.1",
    "--netType resnet18 --stem fine": "resnet18 is another library's | --netType vgg --stem fine",
    "--nGPU 2 --compile": "--compile does not go with DataParallel | --compile",
    "--nGPU 2 --syncBN": "--syncBN is of ranks | --nGPU 2 --syncBN --parallel ranks",
    "--clip 0": "--clip 0 leaves nothing of the gradient | --clip 0.1",
    "--nesterov --optimizer adamw": "--nesterov is a form of SGD's momentum | --nesterov",
    "--nesterov --momentum 0": "--nesterov is a form of SGD's momentum",
    # Where images come from.
    "--dataset table": "--dataset table needs a table | --dataset table --labels x",
    "--dataset mnist --labels x": "--labels is of --dataset table, not of mnist",
    "--dataset mnist --column image=a": "--column is of table, shards, parquet, not of mnist | "
    "--dataset shards --column image=a",
    "--dataset folder --data_dir https://a/b": "folder is read from a disk | "
    "--dataset shards --data_dir https://a/b",
    f"{FOLDER} --test --retrain x --decoded ram": "--decoded is for many epochs",
    "--dataset mnist --decoded ram": f"mnist is in memory as it is | {FOLDER} --decoded ram | "
    "--dataset mnist --decoded ram --storage disk",
    f"{FOLDER} --decoded ram --decodedDir x": "--decodedDir is of --decoded disk | "
    f"{FOLDER} --decoded disk --decodedDir x",
    f"{FOLDER} --decodedSize 256": "--decodedSize is of --decoded",
    "--dataset mnist --classes a,b": f"--classes is of folder | {FOLDER} --classes a,b",
    "--dataset mnist --relabel x": f"not of mnist | {FOLDER} --relabel x",
    f"{FOLDER} --storage disk --relabel x": "--relabel is of folder",
    # Once all are known.
    "--augment crop,what": "argument --augment:",
    "--fit pad --augment scale:256:480,crop": "--fit pad shows all of an image: leave scale out | "
    "--augment scale:256:480,crop",
    f"{FOLDER} --decoded ram --decodedSize 100": "scales all images to --imageSize | "
    f"{FOLDER} --decoded ram --augment resizedcrop --decodedSize 224",
    f"{FOLDER} --decoded ram --augment resizedcrop --decodedSize 223": "--decodedSize 223 is less",
    "--dataset mnist --warmup 2": "--warmup 2: onecycle has a warm-up of its own | "
    "--dataset mnist --warmup 2 --schedule cosine | --warmup 2",
    "--schedule onecycle --warmup 2 --nEpochs 9": "--warmup 2: onecycle has a warm-up of its own",
    "--nEpochs 3 --warmup 3": "--warmup 3 leaves nothing of --nEpochs 3 | --nEpochs 3 --warmup 2.9",
    "--cropSize 65 --imageSize 64": "--cropSize 65 is larger than --imageSize 64 | "
    "--cropSize 64 --imageSize 64",
    "--netType resnet18 --cropSize 31": "too small for resnet18: the smallest is 32 | "
    "--netType resnet18 --cropSize 32",
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_call_is_one_line_and_its_neighbours_are_right(
    call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, *right = (part.strip() for part in WRONG[call].split(" | "))
    with pytest.raises(SystemExit) as stop:
        opts.parse(call.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in said
    assert said.count("\n") == 1
    for other in right:
        opts.parse(other.split())


@pytest.mark.parametrize(
    ("call", "words", "right"),
    [
        ("--nGPU 2", "--nGPU 2 under torchrun: a rank has one GPU", "--nGPU 1"),
        (
            "--batchSize 1",
            "--batchSize 1 is over all ranks together and there are 2",
            "--batchSize 2",
        ),
        (f"{FOLDER} --badImages skip", "--badImages skip is for one process", FOLDER),
    ],
)
def test_what_cannot_be_under_ranks_is_said(
    call: str,
    words: str,
    right: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        opts.parse(call.split())
    assert words in capsys.readouterr().err
    opts.parse(right.split())
    monkeypatch.delenv("WORLD_SIZE")
    opts.parse(call.split())


def test_switching_decoding_off_forgets_all_that_a_run_had_of_it(tmp_path: Path) -> None:
    common = ["--dataset", "folder", "--data_dir", ".", "--expDir", str(tmp_path), "--expID", "a"]
    kept = ["--decoded", "disk", "--decodedDir", str(tmp_path / "p"), "--augment", "resizedcrop"]
    first = opts.parse([*common, *kept, "--decodedSize", "300"])
    first.folder.mkdir(parents=True)
    (first.folder / "options.json").write_text(json.dumps({"options": first.recorded()}))
    again = opts.parse([*common, "--continue", "--decoded", "off"])
    assert (again.decoded, again.decodedSize, again.decodedDir) == (None, None, None)
    assert again.changed == {"decoded": ("disk", "off")}
    # Where there was nothing to switch off nothing has changed.
    plain = opts.parse([*common[:-1], "b"])
    plain.folder.mkdir(parents=True)
    (plain.folder / "options.json").write_text(json.dumps({"options": plain.recorded()}))
    again = opts.parse([*common[:-1], "b", "--continue", "--decoded", "off"])
    assert (again.decoded, again.changed) == (None, {})


@pytest.mark.parametrize(
    ("augment", "size"),
    [("crop,flip", 256), ("resizedcrop", 280), ("scale:256:480,crop", 480)],
)
def test_kept_images_are_as_large_as_their_windows_need(augment: str, size: int) -> None:
    options = opts.parse([*FOLDER.split(), "--decoded", "ram", "--augment", augment])
    assert (options.imageSize, options.cropSize, options.decodedSize) == (256, 224, size)


def test_sizes_and_schedule_are_settled_by_what_is_given() -> None:
    def sizes(text: str) -> tuple[int | None, int | None]:
        options = opts.parse(text.split())
        return options.imageSize, options.cropSize

    assert sizes(FOLDER) == (256, 224)
    assert sizes(f"{FOLDER} --cropSize 300") == (300, 300)
    assert sizes(f"{FOLDER} --imageSize 64") == (64, 64)
    assert sizes(f"{FOLDER} --fit pad") == (224, 224)
    assert sizes(f"{FOLDER} --fit pad --imageSize 300") == (300, 224)
    assert sizes(f"{FOLDER} --fit pad --cropSize 100") == (100, 100)
    assert sizes("--dataset mnist") == (28, 28)

    def schedule(text: str) -> str | None:
        return opts.parse(text.split()).schedule

    assert schedule("") == "regime"
    assert schedule("--dataset mnist") == "onecycle"
    assert schedule("--dataset mnist --LR 0.1") == schedule("--LR 0.1") == "constant"
    assert schedule("--dataset mnist --LR 0.1 --schedule cosine") == "cosine"


def test_a_message_names_the_place_of_what_was_not_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mnist" / "alexnetbn" / "options.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"options": {"dataset": "mnist", "ema": 1.0}}))
    words = ["--dataset", "mnist", "--expDir", str(tmp_path), "--continue"]
    for more, there in ([], True), (["--ema", "1"], False):
        with pytest.raises(SystemExit):
            opts.parse([*words, *more])
        assert (f"(it stands in {path})" in capsys.readouterr().err) == there
    path.write_text(json.dumps({"options": {"dataset": "mnist"}}))
    with pytest.raises(SystemExit):
        opts.parse([*words, "--overwrite"])
    assert "stands in" not in capsys.readouterr().err


def test_a_restart_removes_what_the_first_start_did_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mnist" / "alexnetbn" / "options.json"
    path.parent.mkdir(parents=True)
    words = ["--dataset", "mnist", "--expDir", str(tmp_path)]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this one")

    def found(*more: str) -> tuple[bool, bool]:
        options = opts.parse([*words, *more])
        return options.continue_, options.overwrite

    # Nothing was begun, or another launch's run is there still.
    assert found("--overwrite") == (False, True)
    path.write_text(json.dumps({"options": {"dataset": "mnist"}, "launch": "before"}))
    assert found("--overwrite") == (False, True)
    assert found() == (True, False)
    # What this launch began is never removed by it.
    path.write_text(json.dumps({"options": {"dataset": "mnist"}, "launch": "this one"}))
    assert found("--overwrite") == found("--continue") == (True, False)


def test_a_test_and_a_range_test_have_folders_of_their_own() -> None:
    test = opts.parse(["--dataset", "mnist", "--test", "--retrain", "x", "--expID", "a"])
    assert (test.expID, test.overwrite, test.batchSize) == ("a-test", True, 128)
    found = opts.parse(["--dataset", "mnist", "--findLR"])
    assert (found.expID, found.overwrite) == ("alexnetbn-findLR", True)
    assert opts.parse(["--dataset", "mnist"]).overwrite is False


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    # 50 steps an epoch by powers of two from 16 to 128; 2,000 steps a run in 20 to 60 epochs.
    [(1, 16, 60), (800, 16, 40), (1599, 16, 21), (1600, 32, 40), (6400, 128, 40), (10**6, 128, 20)],
)
def test_batch_and_epochs_follow_the_number_of_images(images: int, batch: int, epochs: int) -> None:
    options = opts.parse(FOLDER.split())
    assert (options.batchSize, options.nEpochs) == (None, None)
    assert settle_by_images(options, images) == ["batch", "epochs"]
    assert (options.batchSize, options.nEpochs) == (batch, epochs)


def test_several_gpus_have_images_enough_each() -> None:
    options = opts.parse([*FOLDER.split(), "--nGPU", "4"])
    settle_by_images(options, 100)
    assert options.batchSize == 4 * 8


def test_only_what_differs_from_its_default_is_told() -> None:
    told = differing(opts.parse(["--dataset", "mnist", "--nEpochs", "7", "--overwrite"]))
    by_set = "by data set; for files by their number"
    assert told == [("dataset", "mnist", "ilsvrc2012"), ("nEpochs", 7, by_set)]


def test_several_ranks_have_images_enough_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    options = opts.parse(FOLDER.split())
    settle_by_images(options, 100)
    assert options.batchSize == 40


def test_the_command_to_go_on_starts_as_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--dataset", "mnist", "--overwrite", "--expID", "a b", "--continue"]
    options = opts.parse(argv[:2])
    go_on = "main.py --dataset mnist --expID 'a b' --continue"

    def launched() -> str:
        launcher, _, rest = options.command_to_continue(argv).partition("/")
        assert rest.endswith(go_on)
        return launcher.strip()

    assert launched() == "python"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert launched() == "torchrun --nproc-per-node 3"
    # On several machines each was started by somebody.
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert launched() == "python"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    options.parallel = "ranks"
    assert launched() == "python"


def test_a_run_that_was_moved_is_where_it_was_found(tmp_path: Path) -> None:
    first = opts.parse(["--dataset", "mnist", "--expDir", str(tmp_path / "a"), "--expID", "r"])
    first.folder.mkdir(parents=True)
    (first.folder / "options.json").write_text(json.dumps({"options": first.recorded()}))
    (tmp_path / "a").rename(tmp_path / "b")
    where = ["--dataset", "mnist", "--expDir", str(tmp_path / "b"), "--expID", "r"]
    again = opts.parse([*where, "--continue"])
    assert (again.expDir, again.folder) == (str(tmp_path / "b"), tmp_path / "b" / "mnist" / "r")


@pytest.mark.parametrize("name", ["continue", "overwrite", "test"])
def test_what_acts_once_has_no_opposite(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        opts.parse([f"--no-{name}"])
    assert f"unknown option --no-{name}" in capsys.readouterr().err
    assert opts.parse(["--dataset", "mnist", "--no-nesterov"]).nesterov is False
