"""Images that are decoded once: the same batches as from their files, never a pixel of a file that
changed, and nothing lost when the decoding is ended.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rig
import torch
import torchvision
from common import ROOT, refused_with
from launch import Launch
from PIL import Image
from rig import Child, fingerprint, finish, make_images

import augmentation
import data
import main
import opts
from base import machine
from base.errors import Failed
from data import KeptLoader, ResidentLoader
from datasets import decoded, folder
from datasets.decoded import Kept
from loading import decode_once
from loading.decoded import ResidentPixels
from loading.pixel_folder import PixelFolder
from loading.plan import BalancedPlan, Plan
from transforms import Pipeline, Scaling, Window

CPU = torch.device("cpu")
PLAIN = Scaling(20, True, 1, "bilinear")


def open_part(path: Path, part: str = "train"):
    return folder.open_folder(str(path), part)


def in_ram(images, scaling: Scaling, skip: bool = False) -> Kept:
    kept, place = decode_once.in_memory(
        images, scaling, np.arange(len(images)), threads=2, skip=skip
    )
    place.close()
    return kept


def on_disk(images, scaling: Scaling, where: Path, skip: bool = False) -> Kept:
    pool = np.arange(len(images))
    return PixelFolder(images, scaling, pool, where, threads=2, skip=skip).keep()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    """48 JPEGs of other sizes each, cut from two photographs: one below 64 pixels, some far
    above.
    """
    place = tmp_path_factory.mktemp("photos")
    pick = np.random.default_rng(3)
    for number in range(48):
        photograph = photographs[number % 2]
        height, width = int(pick.integers(50, 420)), int(pick.integers(50, 630))
        top = int(pick.integers(0, 427 - height))
        left = int(pick.integers(0, 640 - width))
        path = place / "train" / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Image.fromarray(photograph[top : top + height, left : left + width])
        part.save(path, quality=92)
    return place


def both(photos: Path, steps: str, **more) -> tuple[list, list]:
    """Return the batches of an epoch from the files and from kept pixels."""
    images = open_part(photos)
    pipeline = Pipeline(augmentation.parse(steps), 72, 64, seed=2, **more)
    plan = Plan(len(images), 20, 2, True)
    kept = in_ram(images, pipeline.scaling(80))
    files = data.make_loader(images, pipeline, plan, CPU)
    return list(files.epoch(1)), list(KeptLoader(kept, pipeline, plan, CPU, threads=2).epoch(1))


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        ("crop,flip", {}),
        ("none", {}),
        ("none", {"ten": True}),
        ("pad:4,crop", {}),
        ("crop,flip", {"interpolation": "bicubic"}),
    ],
)
def test_windows_of_kept_pixels_are_those_of_the_files(photos: Path, steps: str, more) -> None:
    for files, kept in zip(*both(photos, steps, **more), strict=True):
        assert (files.indices == kept.indices).all()
        assert torch.equal(files.labels, kept.labels)
        assert files.images.shape == kept.images.shape
        assert (files.total, files.index) == (kept.total, kept.index)
        apart = (files.images.int() - kept.images.int()).abs()
        # A file's window begins up to a fraction of a pixel beside where it should.
        assert apart.float().mean() < 1


def test_kept_pixels_are_those_of_resizing_the_whole(photos: Path) -> None:
    images = open_part(photos)
    kept = in_ram(images, Scaling(64, True, 4, "bilinear"))
    for index in range(len(images)):
        with Image.open(images.path(index)) as image:
            scaled = np.asarray(torchvision.transforms.Resize(64)(image))
        apart = np.abs(kept.pixels(index).astype(int) - scaled)
        assert apart.max() <= 2
        assert apart.mean() < 0.3


@pytest.mark.parametrize("steps", ["resizedcrop,flip", "scale:64:80,crop"])
def test_windows_resized_again_look_the_same(photos: Path, steps: str) -> None:
    for files, kept in zip(*both(photos, steps), strict=True):
        assert (files.indices == kept.indices).all()
        # Small windows are blurred by what was scaled down before; none lies elsewhere.
        apart = (files.images.float() - kept.images.float()).abs()
        assert apart.mean() < 8
        smooth = torch.nn.functional.avg_pool2d
        assert (smooth(files.images.float(), 16) - smooth(kept.images.float(), 16)).abs().mean() < 3


def test_batches_do_not_depend_on_the_threads(photos: Path) -> None:
    images = open_part(photos)
    pipeline = Pipeline(augmentation.parse("resizedcrop,flip,jitter:0.4"), 72, 64, seed=2)
    plan = Plan(len(images), 7, 2, True)
    kept = in_ram(images, pipeline.scaling(80))
    alone = list(KeptLoader(kept, pipeline, plan, CPU).epoch(4))
    for threads in (1, 3):
        loader = KeptLoader(kept, pipeline, plan, CPU, threads=threads)
        for a, b in zip(alone, loader.epoch(4), strict=True):
            assert torch.equal(a.images, b.images)
        later = list(loader.epoch(4, 3))
        assert torch.equal(later[0].images, alone[3].images)
        assert len(later) == len(alone) - 3


@pytest.mark.parametrize(
    ("steps", "worst"), [("crop,flip", 0), ("none", 0), ("pad:4,crop", 0), ("resizedcrop", 2)]
)
@pytest.mark.parametrize("ten", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_a_gpu_cuts_is_what_the_host_cuts(
    photos: Path, steps: str, worst: int, ten: bool, interpolation: str
) -> None:
    images = open_part(photos)
    # Ten crops are of testing: their boxes are centred.
    steps = "none" if ten else steps
    given = {"seed": 2, "ten": ten, "interpolation": interpolation}
    pipeline = Pipeline(augmentation.parse(steps), 72, 64, **given)
    plan = Plan(len(images), 20, 2, True)
    kept = in_ram(images, pipeline.scaling(80))
    host = KeptLoader(kept, pipeline, plan, CPU).epoch(1)
    for a, b in zip(host, ResidentLoader(kept, pipeline, plan, CPU).epoch(1), strict=True):
        assert torch.equal(a.labels, b.labels)
        apart = (a.images.int() - b.images.int()).abs()
        assert apart.float().mean() < 0.1
        assert apart.max() <= worst


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_scales_as_if_whole_images_were_resized(photos: Path, interpolation: str) -> None:
    images = open_part(photos)
    steps = augmentation.parse("scale:64:80,crop")
    pipeline = Pipeline(steps, 72, 64, seed=2, interpolation=interpolation)
    plan = Plan(len(images), 20, 2, True)
    kept = in_ram(images, pipeline.scaling(80))
    for batch in ResidentLoader(kept, pipeline, plan, CPU).epoch(1):
        sides = np.stack(kept.sizes(batch.indices), 1).astype(np.float64)
        sizes, corners = pipeline._placement(sides, 1, batch.indices)
        rows = zip(batch.indices, batch.images, sizes.astype(int), corners.astype(int), strict=True)
        for index, found, (width, height), (left, top) in rows:
            whole = torch.nn.functional.interpolate(
                kept.planes(index), (int(height), int(width)), mode=interpolation, antialias=True
            )[0]
            wanted = whole[:, top : top + 64, left : left + 64]
            assert (found.int() - wanted.int()).abs().max() <= 3
            assert (found.int() - wanted.int()).abs().float().mean() < 0.05


def test_a_second_run_decodes_nothing_and_has_the_same_pixels(photos: Path, tmp_path: Path) -> None:
    images = open_part(photos)
    first = on_disk(images, PLAIN, tmp_path)
    second = on_disk(open_part(photos), PLAIN, tmp_path)
    assert first.made_now.all()
    assert not second.made_now.any()
    in_memory = in_ram(images, PLAIN)
    everything = np.arange(len(images))
    second.check(everything)
    assert not second.renewed
    for index in everything.tolist():
        assert (first.pixels(index) == second.pixels(index)).all()
        assert (first.pixels(index) == in_memory.pixels(index)).all()


@pytest.mark.parametrize(
    "other",
    [
        Scaling(24, True, 1, "bilinear"),
        Scaling(20, True, 1, "bicubic"),
        Scaling(20, False, 1, "bilinear"),
    ],
)
def test_pixels_made_another_way_are_others(photos: Path, tmp_path: Path, other: Scaling) -> None:
    on_disk(open_part(photos), PLAIN, tmp_path)
    assert on_disk(open_part(photos), other, tmp_path).made_now.all()
    turned = open_part(photos)
    turned.turn = True
    assert on_disk(turned, PLAIN, tmp_path).made_now.all()


def paint(path: Path, level: int, *, keep_time: bool = False, size: tuple[int, int] = (30, 24)):
    """Replace an image by one of one colour."""
    before = path.stat() if path.exists() else None
    Image.new("RGB", size, (level,) * 3).save(path)
    if keep_time and before is not None:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_only_what_changed_is_decoded_again(images: Path, tmp_path: Path) -> None:
    on_disk(open_part(images), PLAIN, tmp_path)
    paint(images / "train" / "class 1" / "4.jpg", 200, size=(40, 60))
    paint(images / "train" / "class 0" / "new.jpg", 90)
    (images / "train" / "class 2" / "5.jpg").unlink()
    now = open_part(images)
    kept = on_disk(now, PLAIN, tmp_path)
    changed = [now.names[index] for index in np.flatnonzero(kept.made_now)]
    assert sorted(changed) == ["class 0/new.jpg", "class 1/4.jpg"]
    for name, level in (("class 0/new.jpg", 90), ("class 1/4.jpg", 200)):
        found = kept.pixels(list(now.names).index(name))
        assert np.abs(found.astype(int) - level).max() <= 2
    again = on_disk(open_part(images), PLAIN, tmp_path)
    assert not again.made_now.any()
    again.check(np.arange(len(again)))
    assert not again.renewed


def test_a_file_that_changes_after_the_start_is_never_served_as_it_was(
    images: Path, tmp_path: Path
) -> None:
    on_disk(open_part(images), PLAIN, tmp_path)
    listed = open_part(images)
    pipeline, plan = Pipeline([], 20, 16), Plan(len(listed), 5)
    loader = KeptLoader(on_disk(listed, PLAIN, tmp_path), pipeline, plan, CPU, threads=2)
    paint(images / "train" / "class 1" / "4.jpg", 200)
    number = list(listed.names).index("class 1/4.jpg")
    for _ in range(2):
        rows = {i: p for b in loader.epoch(0) for i, p in zip(b.indices, b.images, strict=True)}
        assert (rows[number].int() - 200).abs().max() <= 2


def test_a_spoilt_pixel_is_never_served(images: Path, tmp_path: Path) -> None:
    before = on_disk(open_part(images), PLAIN, tmp_path)
    wanted = [before.pixels(index).copy() for index in range(len(before))]
    with next(tmp_path.glob("decoded-*/pixels")).open("r+b") as file:
        for index in (3, 11):
            place = int(before.rows["offset"][index]) + 700
            file.seek(place)
            file.write(bytes([before.memory[place] ^ 1]))
    kept = on_disk(open_part(images), PLAIN, tmp_path)
    kept.check(np.arange(len(kept)))
    assert sorted(kept.renewed) == [3, 11]
    for index in range(len(kept)):
        assert (kept.pixels(index) == wanted[index]).all()
        planes = kept.planes(index)[0].permute(1, 2, 0)
        assert np.array_equal(planes.numpy(), wanted[index])


@pytest.mark.parametrize("name", ["index.npz", "pixels"])
@pytest.mark.parametrize("what", ["gone", "cut", "noise"])
def test_a_damaged_folder_is_made_anew(images: Path, tmp_path: Path, name: str, what: str) -> None:
    on_disk(open_part(images), PLAIN, tmp_path)
    path = next(tmp_path.glob(f"decoded-*/{name}"))
    content = path.read_bytes()
    if what == "gone":
        path.unlink()
    elif what == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(np.random.default_rng(1).bytes(len(content)))
    kept = on_disk(open_part(images), PLAIN, tmp_path)
    kept.check(np.arange(len(kept)))
    fresh = in_ram(open_part(images), PLAIN)
    assert all((kept.pixels(i) == fresh.pixels(i)).all() for i in range(len(kept)))


def test_a_bad_image_is_named_or_left_out(images: Path, tmp_path: Path) -> None:
    (images / "train" / "class 1" / "4.jpg").write_bytes(b"this is no image")
    for _ in range(2):
        with refused_with(r"class 1/4\.jpg \(number \d+\): not a JPEG.*--badImages skip"):
            on_disk(open_part(images), PLAIN, tmp_path)
    for _ in range(2):
        listed = open_part(images)
        kept = on_disk(listed, PLAIN, tmp_path, skip=True)
        loader = KeptLoader(kept, Pipeline([], 20, 16), Plan(len(listed), 5), CPU, skip=True)
        batches = list(loader.epoch(0))
        assert sum(batch.total for batch in batches) == len(listed) - 1
        (bad,) = loader.bad.values()
        assert bad.path.endswith("class 1/4.jpg")
        assert "not a JPEG" in bad.reason
    # Mended, it is there again.
    paint(images / "train" / "class 1" / "4.jpg", 50)
    listed = open_part(images)
    kept = on_disk(listed, PLAIN, tmp_path)
    assert [listed.names[index] for index in np.flatnonzero(kept.made_now)] == ["class 1/4.jpg"]


def test_a_file_that_was_emptied_is_not_served_as_it_was(images: Path, tmp_path: Path) -> None:
    on_disk(open_part(images), PLAIN, tmp_path)
    (images / "train" / "class 1" / "4.jpg").write_bytes(b"")
    listed = open_part(images)
    kept = on_disk(listed, PLAIN, tmp_path, skip=True)
    assert [listed.names[index] for index in np.flatnonzero(kept.made_now)] == ["class 1/4.jpg"]
    assert not on_disk(open_part(images), PLAIN, tmp_path, skip=True).made_now.any()


@pytest.mark.parametrize("ten", [False, True])
def test_a_batch_of_bad_images_alone_is_empty(images: Path, ten: bool) -> None:
    (images / "train" / "class 1" / "4.jpg").write_bytes(b"this is no image")
    listed = open_part(images)
    kept = in_ram(listed, PLAIN, skip=True)
    given = kept, Pipeline([], 20, 16, ten=ten), Plan(len(listed), 1), CPU
    for loader in (KeptLoader(*given, skip=True), ResidentLoader(*given, skip=True)):
        sizes = [len(batch.images) for batch in loader.epoch(0)]
        assert sorted(sizes) == [0] + [1] * (len(listed) - 1)


def test_what_limit_leaves_out_is_not_decoded(images: Path, tmp_path: Path) -> None:
    listed = open_part(images)
    plan = Plan(len(listed), 4, 2, True, limit=8)
    assert sorted(plan.pool) == sorted(np.concatenate(list(plan.epoch(3))))
    balanced = BalancedPlan(**vars(Plan(len(listed), 4, 2, True, limit=8)), labels=listed.labels)
    assert {*np.concatenate(list(balanced.epoch(3)))} <= {*plan.pool.tolist()}
    kept = PixelFolder(listed, PLAIN, plan.pool, tmp_path, threads=1, skip=False).keep()
    assert sorted(np.flatnonzero(kept.made_now)) == sorted(plan.pool)
    more = on_disk(listed, PLAIN, tmp_path)
    assert sorted(np.flatnonzero(~more.made_now)) == sorted(plan.pool)


def test_one_file_of_two_rows_is_decoded_once(images: Path) -> None:
    listed = open_part(images)
    twice = listed.chosen(np.array([3, 3, 5]))
    kept = in_ram(twice, PLAIN)
    assert kept.rows["offset"][0] == kept.rows["offset"][1]
    assert (kept.pixels(0) == kept.pixels(1)).all()


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from datasets import folder
from loading.pixel_folder import PixelFolder
from loading import decode_once
from loading.decoded import ResidentPixels
from transforms import Scaling
decode_once.RECORD_EVERY = 0.02
images = folder.open_folder(sys.argv[1], "train")
pool = np.arange(len(images))
keeping = PixelFolder(
    images, Scaling(200, True, 1, "bilinear"), pool, Path(sys.argv[2]), threads=2, skip=False
)
print("begins", flush=True)
print("decoded", int(keeping.keep().made_now.sum()), flush=True)
"""


def start_keeping(images: Path, where: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(images), str(where)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_decoding_that_was_killed_goes_on(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 900)
    scaling = Scaling(200, True, 1, "bilinear")
    whole = in_ram(open_part(images), scaling)
    kills, out = 0, tmp_path / "kept"
    for delay in (0.0, 0.1, 0.2, 0.3):
        process = start_keeping(images, out)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        # Only what is whole has its name.
        for path in out.glob("decoded-*[0-9a-f]/"):
            held = decoded.read_index(path, decoded.how(open_part(images), scaling))
            assert held is not None
            assert len(held.rows) == 900
    assert kills >= 2
    parts = list(out.glob("decoded-*/"))
    begun = decoded.read_index(parts[0], decoded.how(open_part(images), scaling))
    kept = on_disk(open_part(images), scaling, out)
    assert kept.made_now.sum() == len(kept) - (0 if begun is None else len(begun.rows))
    for index in range(len(kept)):
        assert (kept.pixels(index) == whole.pixels(index)).all()


def test_how_far_it_is_is_noted_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill must not cost all that was decoded since the first note."""
    monkeypatch.setattr(decode_once, "RECORD_EVERY", 0.0)
    listed = open_part(make_images(tmp_path / "d", 600))
    noted = []
    pool = np.arange(len(listed))
    with open(tmp_path / "pixels", "w+b") as file:
        making = decode_once.Making(listed, PLAIN, file.fileno(), skip=False)
        making.run(pool, 1, lambda: noted.append(len(making.index().rows)))
    assert len(noted) >= 3
    assert noted == sorted({*noted})


def test_two_runs_at_once_decode_once(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 600)
    pair = [start_keeping(images, tmp_path / "kept") for _ in range(2)]
    texts = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sum(int(re.findall(r"decoded (\d+)", text)[0]) for text in texts) == 600


def test_pixels_that_came_back_otherwise_are_not_given_their_name(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = decode_once._write_all

    def careless(descriptor: int, content, offset: int) -> None:
        write(descriptor, bytes(len(memoryview(content).cast("B"))), offset)

    monkeypatch.setattr(decode_once, "_write_all", careless)
    with pytest.raises(Failed, match="24 images came back from the disk other than"):
        on_disk(open_part(images), PLAIN, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("decoded-*[0-9a-f]/"))
    assert on_disk(open_part(images), PLAIN, tmp_path).made_now.all()


def test_too_little_room_is_seen_beforehand(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with refused_with(r"about 3.6e-05 GB, on the disk of .* 1e-05 GB are free: .*--decodedDir"):
        on_disk(open_part(images), PLAIN, tmp_path)
    monkeypatch.setattr(decode_once, "free_memory", lambda: 30_000)
    with refused_with("about 3.6e-05 GB, of memory 3e-05 GB are free: give --decoded disk"):
        decode_once.refuse_memory(36_000, "d")
    decode_once.refuse_memory(20_000, "d")


def test_the_estimate_is_what_the_pixels_take(photos: Path) -> None:
    images = open_part(photos)
    for scaling in (PLAIN, Scaling(200, False, 1, "bilinear")):
        assert decode_once.estimate(images, scaling) == in_ram(images, scaling).nbytes


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    assert machine.free_memory(proc, groups) == 5000 * 1024
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "memory.max").write_text("3000000\n")
    (groups / "a" / "memory.current").write_text("2500000\n")
    (groups / "a" / "memory.stat").write_text("anon 9\nfile 700000\nshmem 200000\n")
    assert machine.free_memory(proc, groups) == 3_000_000 - 2_500_000 + 500_000
    (proc / "self" / "cgroup").write_text("5:memory,cpu:/a/b\n")
    (groups / "memory" / "a" / "b").mkdir(parents=True)
    (groups / "memory" / "a" / "b" / "memory.limit_in_bytes").write_text("1000\n")
    (groups / "memory" / "a" / "b" / "memory.usage_in_bytes").write_text("400\n")
    assert machine.free_memory(proc, groups) == 600
    assert machine.free_memory(tmp_path, tmp_path) is None


def command(images: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--augment", "resizedcrop,flip,jitter:0.4", "--logger", "none"]
    return [*rig.image_options(out, images), *sizes, *more]


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d")
    finish(command(images, tmp_path / "a", "--decoded", "ram"))
    finish(command(images, tmp_path / "b", "--decoded", "disk"))
    wanted = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "b") == wanted
    for kind in ("ram", "disk"):
        out = tmp_path / kind
        child = Child(command(images, out, "--decoded", kind))
        while child.steps < 7:
            time.sleep(0.01)
        child.kill()
        child.wait()
        more = ("--decoded", "disk") if kind == "ram" else ()
        text = finish(command(images, out, "--continue", *more))
        assert "bit-for-bit identical" in text
        assert fingerprint(out) == wanted


@pytest.mark.parametrize(
    ("low", "plain"), [([3.0, 5.0], True), ([3.5, 5.0], False), ([3.0, 5.25], False)]
)
@pytest.mark.parametrize("size", [16, 20])
def test_on_a_gpu_windows_between_pixels_are_resized(
    low: list[float], plain: bool, size: int
) -> None:
    pixels = object.__new__(ResidentPixels)
    sizes = (np.full(2, 40), np.full(2, 40))
    pixels.kept = SimpleNamespace(sizes=lambda _: sizes)  # type: ignore[assignment]
    pixels.starts = np.array([0, 1600])
    box = np.array([[3.0, 5.0, 19.0, 21.0], [*low, low[0] + 16, low[1] + 16]])
    layout = pixels.layout(Window(box, size), np.array([0, 1]), "bilinear")
    # As many pixels as are asked for, from whole ones on: they are copied.
    assert layout.plain is (plain and size == 16)
    assert layout.regions[1, 0] == 1600


def test_kept_pixels_are_part_of_what_bits_depend_on(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 24)
    finish(command(images, tmp_path / "a", "--nEpochs", "1"))
    again = command(images, tmp_path / "a", "--continue", "--nEpochs", "2", "--decoded", "ram")
    assert "not bit for bit: nEpochs 1 became 2, decoded None became ram" in finish(again)
    # On a machine without the memory for it.
    off = command(images, tmp_path / "a", "--continue", "--nEpochs", "3", "--decoded", "off")
    text = finish(off)
    assert "not bit for bit: nEpochs 2 became 3, decoded ram became off" in text
    assert "decoded   " not in text
    recorded = json.loads(next(tmp_path.glob("a/*/*/options.json")).read_text())["options"]
    assert recorded["decoded"] is recorded["decodedSize"] is None
    assert "decoded" not in finish([*off, "--nEpochs", "4"]).split("not bit for bit")[1][:60]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--dataset mnist --decoded ram", "mnist is in memory as it is"),
        ("--dataset folder --test --retrain x.pt --decoded ram", "--test reads each image once"),
        ("--dataset folder --decodedDir x", "--decodedDir is of --decoded disk"),
        ("--dataset folder --decodedSize 99", "--decodedSize is of --decoded"),
        (
            "--dataset folder --decoded disk --decodedSize 99",
            "scales all images to --imageSize 256",
        ),
        (
            "--dataset folder --decoded ram --augment resizedcrop --decodedSize 99",
            "--decodedSize 99 is less than --cropSize 224",
        ),
        ("--dataset folder --decoded tape", "is not one of off, ram, disk, device"),
    ],
)
def test_a_wrong_call_is_told(given: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        opts.parse(given.split())
    assert told in capsys.readouterr().err


def test_the_size_that_is_kept_is_settled_and_recorded() -> None:
    for steps, size in (("crop", 256), ("resizedcrop", 280), ("scale:256:480,crop", 480)):
        given = ["--dataset", "folder", "--decoded", "ram", "--augment", steps]
        assert opts.parse(given).recorded()["decodedSize"] == size
    assert opts.parse(["--dataset", "folder"]).recorded()["decodedSize"] is None


def test_a_gpu_is_needed_for_pixels_on_it(images: Path, tmp_path: Path) -> None:
    given = rig.on_folder(images, "--decoded", "device", "--expDir", str(tmp_path))
    with refused_with(r"--decoded device: this run is on the cpu: give --decoded ram"):
        main.main(given)
    assert not (tmp_path / "folder" / "alexnetbn").exists()


def test_the_header_says_what_keeping_would_take(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = rig.on_folder(images, "--nEpochs", "1", "--expDir", str(tmp_path), "--netType", "tiny")
    main.main(given)
    assert re.search(
        r"decoding  in each epoch; --decoded ram would keep all pixels, about [\d.e-]+ "
        r"GB of \S+ GB free memory",
        capsys.readouterr().out,
    )


def test_two_ranks_share_one_copy(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 48)
    found = set()
    for kind in ("ram", "disk"):
        out = tmp_path / kind
        launch = Launch(2, command(images, out, "--decoded", kind, "--nEpochs", "1"))
        status, said = launch.wait(), launch.text()
        launch.output.close()
        assert status == 0, said[-2000:]
        assert len(re.findall("48 decoded now", said)) == 1
        found.add(fingerprint(out))
    assert len(found) == 1


@pytest.mark.parametrize("own", [True, False])
def test_a_process_lets_go_of_what_it_holds_itself(own: bool) -> None:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    place = decode_once.Place(os.getpid() if own else os.getpid() + 1, *held)
    place.close()
    for descriptor in held:
        if own:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
        else:
            os.close(descriptor)


@pytest.mark.parametrize("noted", [True, False])
def test_how_far_decoding_is_is_recorded_where_that_outlasts_it(
    noted: bool, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory nothing is recorded, however long it takes."""
    monkeypatch.setattr(decode_once, "RECORD_EVERY", -1)
    listed = open_part(images)
    with (tmp_path / "pixels").open("w+b") as file:
        making = decode_once.Making(listed, Scaling(20, True, 4, "bilinear"), file.fileno(), False)
        calls: list[int] = []
        note = (lambda: calls.append(1)) if noted else None
        making.run(np.arange(len(listed)), 1, note)
    assert making.is_done.all()
    assert bool(calls) is noted


def test_nothing_is_mapped_of_an_empty_file(tmp_path: Path) -> None:
    for content in (b"", b"some bytes"):
        (tmp_path / "x").write_bytes(content)
        with (tmp_path / "x").open("rb") as file:
            assert decoded.map_pixels(file.fileno()).tobytes() == content


def test_what_was_just_decoded_is_not_looked_at_again(images: Path) -> None:
    listed = open_part(images)
    pool = np.array([1, 4, 5])
    kept, place = decode_once.in_memory(
        listed, Scaling(20, True, 4, "bilinear"), pool, threads=1, skip=False
    )
    place.close()
    assert np.flatnonzero(kept.made_now).tolist() == pool.tolist()
