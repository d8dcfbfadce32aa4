"""Batches from arrays and files: the same whoever makes them."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rig import make_images

import augmentation
import data
import main
import model
import opts
from augmentation import AUGMENTATIONS, WINDOW
from base.errors import Failed, Refused, clear_errors
from datasets import folder
from loading import seen, starts
from loading.deaths import end_workers
from loading.plan import Plan
from run.watch import Clock, Watch
from transforms import Pipeline

CPU = torch.device("cpu")


def open_part(path: Path, part: str = "train"):
    return folder.open_folder(str(path), part)


def batches(images, workers: int, epoch: int, start: int = 0, **more):
    steps = augmentation.parse("crop,flip,jitter:0.4")
    plan = Plan(len(images), 5, 2, True)
    source = data.make_loader(
        images, Pipeline(steps, 20, 16, seed=2), plan, CPU, workers=workers, **more
    )
    return list(source.epoch(epoch, start))


@pytest.mark.parametrize(
    ("workers", "method"), [(1, "fork"), (3, "fork"), (2, "forkserver"), (2, "spawn")]
)
def test_batches_do_not_depend_on_the_processes_that_make_them(
    images: Path, workers: int, method: str
) -> None:
    alone = batches(open_part(images), 0, 4)
    for a, b in zip(
        alone, batches(open_part(images), workers, 4, start_method=method), strict=True
    ):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.indices == b.indices).all()
    later = batches(open_part(images), workers, 4, 3, start_method=method)
    assert torch.equal(later[0].images, alone[3].images)


def test_a_bad_image_is_named_with_its_number(images: Path) -> None:
    bad = images / "train" / "class 1" / "4.jpg"
    bad.write_bytes(b"this is no image")
    for count in (0, 2):
        with pytest.raises(Refused, match=r"class 1/4\.jpg \(number \d+\): not a JPEG"):
            batches(open_part(images), count, 0, start_method="fork")


def test_a_cut_image_is_an_error_and_never_replaced(images: Path) -> None:
    path = images / "train" / "class 2" / "5.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(Refused, match=r"5\.jpg"):
        batches(open_part(images), 0, 0)


def test_png_files_are_tested_as_they_are(images: Path) -> None:
    test = folder.open_folder(str(images), "test", classes=["class 0", "class 1", "class 2"])
    source = data.make_loader(test, Pipeline([], 20, 20), Plan(len(test), 4), CPU)
    found = {
        test.path(i): image
        for batch in source.epoch(0)
        for i, image in zip(batch.indices, batch.images, strict=True)
    }
    path = str(images / "val" / "class 1" / "more.PNG")
    assert (found[path] == 80).all()
    assert np.asarray(Image.open(path)).shape == (20, 26, 3)


OPTIONS = [
    "--dataset",
    "folder",
    "--GPU",
    "-1",
    "--imageSize",
    "24",
    "--cropSize",
    "20",
    "--batchSize",
    "8",
    "--nEpochs",
    "2",
]


def spoil(images: Path) -> list[str]:
    """Make 3 training images and a test image bad; return their paths."""
    bad = [
        images / "train" / "class 0" / "0.jpg",
        images / "train" / "class 1" / "4.jpg",
        images / "train" / "class 2" / "5.jpg",
    ]
    bad.append(images / "val" / "class 1" / "1.jpg")
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:300])
    bad[2].write_bytes(b"no image")
    bad[3].write_bytes(b"\xff\xd8\xff" + bytes(50))
    return [str(path) for path in bad]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_images_are_left_out_counted_and_listed(
    images: Path, tmp_path: Path, workers: str
) -> None:
    bad = spoil(images)
    more = [
        "--data_dir",
        str(images),
        "--badImages",
        "skip",
        "--nThreads",
        workers,
        "--expDir",
        str(tmp_path / "runs"),
    ]
    main.main([*OPTIONS, *more])
    run = tmp_path / "runs" / "folder" / "alexnetbn"
    with (run / "bad_images.csv").open() as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == sorted(bad)
    for line in (run / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert (record["train_left_out"], record["test_left_out"]) == (3, 1)
    with (run / "classes.csv").open() as file:
        assert sum(int(row["images"]) for row in csv.DictReader(file)) == 9 - 1


def test_a_bad_image_ends_a_run_by_default(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(images)
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
        main.main(
            [
                *OPTIONS,
                "--data_dir",
                str(images),
                "--nThreads",
                "0",
                "--expDir",
                str(tmp_path / "runs"),
            ]
        )
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert any(path in said for path in bad)
    assert "--badImages skip" in said


def test_too_little_shared_memory_is_said_before_a_run() -> None:
    with pytest.raises(Refused, match=r"4 workers need 9 MiB .*--shm-size"):
        starts.check_shared_memory(4, 1 << 20, 8 << 20)
    starts.check_shared_memory(4, 1 << 20, 10 << 20)


def test_a_run_that_waits_for_files_says_what_to_change_once() -> None:
    class Told:
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

    watch = Watch(Told(), Path(), CPU)  # type: ignore[arg-type]
    watch.reads_files = True
    # The start of the workers, not their speed: all of a short pass, or the first wait of a long
    # one.
    for clock in (Clock(6.0, 0.0, 0.2), Clock(data=32.0, first=31.0, compute=40.0)):
        watch.training = clock
        watch.advise()
    assert not Told.lines
    for share in (0.05, 0.5, 0.5):
        watch.training = Clock(data=60 * share + 9, first=9.0, compute=60 * (1 - share))
        watch.advise()
    assert len(Told.lines) == 1
    assert all(word in Told.lines[0] for word in ("50%", "--nThreads", "shrink", "--tune"))


@pytest.mark.parametrize("name", [name for name, e in AUGMENTATIONS.items() if e.stage > WINDOW])
def test_every_step_runs_on_images_of_files(images: Path, name: str) -> None:
    # Decoders write channels last, which not every operation can see as planes.
    loader = data.make_loader(
        open_part(images),
        Pipeline(augmentation.parse(f"crop,{name}"), 20, 16, seed=1),
        Plan(6, 6),
        CPU,
    )
    batch = next(iter(loader.epoch(0)))
    assert batch.images.shape == (6, 3, 16, 16)
    mixed, _ = loader.pipeline.mix(batch.images, batch.labels, 3, 0, 0)
    assert mixed.shape == batch.images.shape


def test_an_error_in_a_worker_is_named_and_is_no_lost_worker(images: Path) -> None:
    pipeline = Pipeline([], 20, 16)

    def broken(*_: object) -> None:
        raise RuntimeError("view size is not compatible")

    pipeline.windows = broken  # type: ignore[method-assign,assignment]
    loader = data.make_loader(
        open_part(images), pipeline, Plan(2, 2), CPU, workers=1, start_method="fork"
    )
    with pytest.raises(Failed, match="a loader worker failed: RuntimeError: view size is not"):
        next(iter(loader.epoch(0)))
    end_workers()  # children that later tests fork must not find them


@pytest.mark.parametrize(
    ("parts", "images", "size"), [((), 100, 8 * 3 * 400), ((10,), 100, 80 * 3 * 400), ((), 5, 6000)]
)
def test_workers_ask_for_the_memory_of_their_batches(
    parts: tuple[int, ...], images: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(data, "check_shared_memory", lambda *given: asked.append(given))
    loader = object.__new__(data.FileLoader)
    loader.pipeline = SimpleNamespace(parts=parts, crop_size=20)  # type: ignore[assignment]
    loader.plan = SimpleNamespace(batch=8, image_count=images)  # type: ignore[assignment]
    loader.timeout = 7
    settings = loader._worker_settings(4, "spawn")
    assert asked == [(4, size)]
    assert (settings["timeout"], settings["persistent_workers"]) == (7, True)


@pytest.mark.parametrize(
    ("trained", "asked", "turned"),
    [
        *(("ignore", None, False), ("apply", None, True)),
        *(("ignore", "apply", True), ("apply", "ignore", False)),
    ],
)
def test_images_are_turned_as_in_training_unless_asked_otherwise(
    trained: str, asked: str | None, turned: bool, images: Path
) -> None:
    spec = model.create("ninbn", 3, 16, image_size=20, exif=trained).spec
    listed = open_part(images)
    pixels, indices, bad = next(seen.batches(spec, listed, asked))
    assert listed.turn is turned
    assert (pixels.shape[1:], bad) == ((3, 16, 16), [])
    assert indices.tolist() == list(range(min(32, len(listed))))


def test_a_test_reads_every_image_once(tmp_path: Path) -> None:
    listed = open_part(make_images(tmp_path / "d", 75))
    spec = model.create("ninbn", 3, 16, image_size=20).spec
    found = [indices.tolist() for _, indices, _ in seen.batches(spec, listed)]
    assert [index for part in found for index in part] == list(range(75))
    assert [len(part) for part in found] == [32, 32, 11]
