"""Every data set reads what its published files hold, a folder of one's own is split once and for
all.
"""

import gzip
import hashlib
import http.server
import os
import pickle
import re
import shutil
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from common import DATA, refused_with
from scipy import stats

import main
import prepare
from base.errors import Refused
from base.fetch import digest_of, fetch
from datasets import arrays, cifar, folder
from datasets.images import FileImages
from datasets.split import split
from loading.plan import BalancedPlan
from preparation import verify


def write_cifar(root: Path, what: cifar.Published, count: int = 20) -> None:
    """Write files in the published form: protocol 2, arrays under NumPy 1's names."""
    noise = np.random.default_rng(5)
    classes = [f"thing {n}" for n in range(10 if what is cifar.CIFAR10 else 100)]

    def write(name: str, value: object) -> None:
        content = pickle.dumps(value, 2).replace(
            b"numpy._core.multiarray", b"numpy.core.multiarray"
        )
        (root / what.folder).mkdir(parents=True, exist_ok=True)
        (root / what.folder / name).write_bytes(content)

    write(what.meta, {what.names: classes, "num_vis": 3072})
    for name in (*what.train, *what.test):
        labels = noise.integers(0, len(classes), count).tolist()
        pixels = noise.integers(0, 256, (count, 3072), np.uint8)
        write(
            name,
            {
                "data": pixels,
                what.labels: labels,
                "filenames": ["x.png"] * count,
                "batch_label": "one",
            },
        )


@pytest.mark.parametrize(
    ("what", "ours", "theirs"),
    [
        (cifar.CIFAR10, cifar.cifar10, torchvision.datasets.CIFAR10),
        (cifar.CIFAR100, cifar.cifar100, torchvision.datasets.CIFAR100),
    ],
)
def test_cifar_is_what_torchvision_reads(
    tmp_path: Path, what, ours, theirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, what)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    for part in ("train", "test"):
        images = ours(str(tmp_path), part)
        reference = theirs(str(tmp_path), train=part == "train")
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), reference.data)
        assert images.labels.tolist() == reference.targets
    assert images.classes[3] == "thing 3"
    assert len(ours(str(tmp_path / what.folder), "test")) == len(
        images
    )  # the folder itself does as well


class Bad:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_cifar_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, cifar.CIFAR10)
    path = tmp_path / cifar.CIFAR10.folder / "test_batch"
    whole = path.read_bytes()
    canary = tmp_path / "canary"
    pixels = np.zeros((2, 3072), np.uint8)
    wrong = [
        (whole[: len(whole) // 2], "no CIFAR file"),
        (pickle.dumps({"data": Bad(canary), "labels": [1]}), "asks for pathlib"),
        (pickle.dumps({"data": pixels, "labels": [1]}, 2), "1 labels"),
        (pickle.dumps({"data": pixels.astype(np.float64), "labels": [1, 2]}, 2), "type"),
        (pickle.dumps({"data": pixels, "labels": [1, 10]}, 2), "label 10"),
        (pickle.dumps([1, 2]), "has no 'data'"),
        (b"", "no CIFAR file"),
    ]
    for content, words in wrong:
        path.write_bytes(content)
        with pytest.raises(Refused, match=words) as refused:
            cifar.cifar10(str(tmp_path), "test")
        assert "test_batch" in str(refused.value)
    assert not canary.exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of this machine that sends parts of files; it cuts off what is called cut.bin."""
    root = tmp_path / "site"
    root.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (root / self.path[1:]).read_bytes()
            asked = self.headers.get("Range")
            # Servers that send no part of a file may refuse to be asked for one.
            assert asked != "bytes=0-"
            start = int((asked or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            part = content[start:]
            self.wfile.write(part[: len(part) // 2] if "cut" in self.path else part)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", root
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_fetch_that_was_cut_off_goes_on(site: tuple[str, Path], tmp_path: Path) -> None:
    url, root = site
    content = np.random.default_rng(1).bytes(300_000)
    (root / "cut.bin").write_bytes(content)
    (root / "whole.bin").write_bytes(content)
    md5 = digest_of(root / "whole.bin")
    with pytest.raises(Refused, match=r"cut off after 150000 of 300000.*put whole\.bin"):
        fetch(url + "cut.bin", tmp_path / "whole.bin", md5)
    assert (tmp_path / "whole.bin.part").stat().st_size == 150_000
    fetch(url + "whole.bin", tmp_path / "whole.bin", md5)
    assert (tmp_path / "whole.bin").read_bytes() == content
    assert not (tmp_path / "whole.bin.part").exists()


def test_a_fetch_of_something_else_leaves_nothing(site: tuple[str, Path], tmp_path: Path) -> None:
    url, root = site
    (root / "x.bin").write_bytes(b"other")
    with pytest.raises(Refused, match="it was removed"):
        fetch(url + "x.bin", tmp_path / "x.bin", "0" * 32)
    assert not list(tmp_path.glob("x.bin*"))
    with pytest.raises(Refused, match=r"cannot fetch .* put y\.bin into"):
        fetch("http://127.0.0.1:9/y.bin", tmp_path / "y.bin", "0" * 32)


def test_an_archive_is_unpacked_to_its_own_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "made", cifar.CIFAR10)
    archive = tmp_path / cifar.CIFAR10.archive
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / cifar.CIFAR10.folder, cifar.CIFAR10.folder)
        tar.add(__file__, "../outside.py")
    with pytest.raises(Refused, match="has MD5"):
        cifar.cifar10(str(tmp_path), "test")
    monkeypatch.setattr(
        cifar, "CIFAR10", cifar.Published(**cifar.CIFAR10.__dict__ | {"md5": digest_of(archive)})
    )
    assert len(cifar.cifar10(str(tmp_path), "test")) == 20
    assert not (tmp_path.parent / "outside.py").exists()
    assert {p.name for p in (tmp_path / cifar.CIFAR10.folder).iterdir()} == {
        "batches.meta",
        "test_batch",
        *cifar.CIFAR10.train,
    }


def test_fashion_is_read_from_a_bare_folder_of_packed_files(tmp_path: Path) -> None:
    for path in (DATA / "mnist").iterdir():
        shutil.copy(path, tmp_path)
    packed = arrays.fashionmnist(str(tmp_path), "train")
    assert packed.classes[9] == "Ankle boot"
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (DATA / "mnist").iterdir():
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    reference = torchvision.datasets.FashionMNIST(str(tmp_path), train=True)
    assert torch.equal(packed.pixels[:, 0], reference.data)


def files_of(root: Path, counts: dict[str, int], start: int = 0) -> FileImages:
    """Write files, each with a content of its own, and list all that are there."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            (root / label / f"{number}.jpg").write_bytes(f"{label} {number}".encode())
    return folder.list_images(str(root), None)


def test_a_split_is_stratified_disjoint_and_stays(tmp_path: Path) -> None:
    root, kept = tmp_path / "d", tmp_path / "split.csv"
    images = files_of(root, {"a": 100, "b": 57, "c": 2})
    test = split(images, 0.1, 3, kept)
    for label, count in enumerate((100, 57, 2)):
        assert abs(test[images.labels == label].sum() - 0.1 * count) <= 1
    assert (split(images, 0.1, 3, kept) == test).all()
    assert (split(images, 0.1, 3, None) == test).all()
    before = dict(zip(images.names, test, strict=True))
    more = files_of(root, {"a": 10, "b": 6, "c": 1}, start=1000)
    grown = split(more, 0.1, 3, kept)
    after = dict(zip(more.names, grown, strict=True))
    assert all(after[name] == side for name, side in before.items())
    for label, count in enumerate((110, 63, 3)):
        assert abs(grown[more.labels == label].sum() - 0.1 * count) <= 1
    assert split(images, 0.3, 3, kept).sum() > 2 * test.sum()
    # The seed decides, and nothing else.
    assert (split(images, 0.3, 4, None) != split(images, 0.3, 3, None)).any()


def test_names_of_any_bytes_keep_their_side(tmp_path: Path) -> None:
    for name in ("line\nbreak.jpg", 'quote",.jpg', "bad\udcff.jpg", "ü.jpg"):
        (tmp_path / "d" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / "a" / name).write_bytes(os.fsencode(name))
    images = files_of(tmp_path / "d", {"b": 4})
    test = split(images, 0.5, 1, tmp_path / "s.csv")
    written = (tmp_path / "s.csv").read_bytes()
    assert (split(images, 0.5, 1, tmp_path / "s.csv") == test).all()
    assert written == (tmp_path / "s.csv").read_bytes()
    assert written.count(b"share") == 1


def test_a_folder_without_a_split_trains(images: Path, tmp_path: Path) -> None:
    arguments = [
        "--dataset",
        "folder",
        "--data_dir",
        str(images / "train"),
        "--valShare",
        "0.25",
        "--GPU",
        "-1",
    ]
    arguments += [
        "--nEpochs",
        "1",
        "--imageSize",
        "24",
        "--cropSize",
        "20",
        "--nThreads",
        "0",
        "--expDir",
        str(tmp_path / "r"),
    ]
    main.main([*arguments, "--balanced", "--classWeights"])
    split_files = list((tmp_path / "r").rglob("split*.csv"))
    assert split_files
    assert split_files[0].read_text().count("test,") == 6


def test_folders_that_mean_two_things_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="split of its own"):
        folder.open_folder(str(images), "train", val_share=0.1)
    with refused_with(r"--valShare 0\.1"):
        folder.open_folder(str(images / "train"), "train")
    shutil.copytree(images / "train" / "class 0", images / "train" / "Class 0")
    with pytest.raises(Refused, match="differ in case only"):
        folder.open_folder(str(images), "train")
    single = tmp_path / "single"
    shutil.copytree(images / "train" / "class 0", single / "only")
    with pytest.raises(Refused, match="one class only, 'only'"):
        folder.open_folder(str(single), "train", val_share=0.1)
    (single / "other").mkdir()
    shutil.copy(images / "train" / "class 0" / "0.jpg", single / "other")
    with pytest.raises(Refused, match="has 1 image"):
        folder.open_folder(str(single), "train", val_share=0.1)


def test_balanced_draws_are_even_over_classes_and_images() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    plan = BalancedPlan(1000, 100, 3, True, labels=labels)
    drawn = np.concatenate(
        [plan.indices(epoch, number) for epoch in range(9) for number in range(len(plan))]
    )
    assert stats.chisquare(np.bincount(labels[drawn])).pvalue > 1e-3
    rare = np.bincount(drawn[labels[drawn] == 2] - 990, minlength=10)
    assert stats.chisquare(rare).pvalue > 1e-3
    shares = [
        BalancedPlan(1000, 100, 3, True, None, rank, 3, labels=labels).indices(2, 4)
        for rank in range(3)
    ]
    assert sorted(np.concatenate(shares)) == sorted(plan.indices(2, 4))


@pytest.mark.parametrize("freeze", ["features", "1", "2"])
def test_frozen_layers_stay_bit_for_bit(tmp_path: Path, freeze: str) -> None:
    from base import archive

    arguments = [
        "--dataset",
        "synthetic",
        "--synthetic",
        "64:4:32",
        "--imageSize",
        "32",
        "--cropSize",
        "32",
        "--GPU",
        "-1",
    ]
    arguments += [
        "--batchSize",
        "16",
        "--nEpochs",
        "1",
        "--expDir",
        str(tmp_path),
        "--netType",
        "alexnetowtbn",
    ]
    main.main([*arguments, "--expID", "first"])
    first = archive.read(tmp_path / "synthetic" / "first" / "model_1.pt")["network"]
    weights = str(tmp_path / "synthetic" / "first" / "model_1.pt")
    main.main(
        [
            *arguments,
            "--expID",
            "second",
            "--retrain",
            weights,
            "--freeze",
            freeze,
            "--backboneLR",
            "0.1",
        ]
    )
    second = archive.read(tmp_path / "synthetic" / "second" / "model_1.pt")["network"]
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    last = {"1": ("body.classifier.8.",), "2": ("body.classifier.8.", "body.classifier.6.")}
    assert changed
    assert all(name.startswith(last.get(freeze, ("body.classifier.",))) for name in changed), (
        changed
    )


def test_class_weights_are_inverse_to_frequency(images: Path, tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    import configs
    import opts

    for path in list((images / "train" / "class 0").iterdir())[:5]:
        path.unlink()
    options = opts.parse(
        ["--dataset", "folder", "--data_dir", str(images), "--classWeights", "--GPU", "-1"]
    )
    train, _ = configs.open_both(options)
    weights = configs.make_criterion(options, train, torch.device("cpu")).weights
    assert weights is not None
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=train.labels)
    assert weights.tolist() == pytest.approx(theirs.tolist())


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashionmnist"])
def test_every_data_set_trains_by_its_name(name: str, tmp_path: Path) -> None:
    if name == "fashionmnist":
        where = DATA / "mnist"
    else:
        where = tmp_path
        write_cifar(tmp_path, {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name], 100)
    arguments = [
        "--dataset",
        name,
        "--data_dir",
        str(where),
        "--limit",
        "96",
        "--nEpochs",
        "1",
        "--GPU",
        "-1",
    ]
    main.main([*arguments, "--expDir", str(tmp_path / "runs")])
    assert list((tmp_path / "runs").rglob("log.jsonl"))


def test_prepare_tells_what_a_folder_holds(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "train" / "class 1" / "bad.jpg").write_bytes(b"no image")
    prepare.main(["info", "--data_dir", str(images)])
    said = capsys.readouterr()
    assert "train: 25 images in 3 classes" in said.out
    assert "JPEG 24" in said.out
    assert "class 1 (9)" in said.out
    assert "bad.jpg: not a JPEG" in said.err
    prepare.main(["info", "--data_dir", str(images / "train")])
    assert "--valShare 0.1" in capsys.readouterr().out
    # Digits in MNIST's format are not the published clothes, whatever they are called.
    with pytest.raises(SystemExit) as stop:
        prepare.main(["fashionmnist", "--data_dir", str(DATA / "mnist")])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "400 images" in said.out
    assert "train-images-idx3-ubyte.gz has md5" in said.err
    with pytest.raises(SystemExit) as stop:
        prepare.main(["info", "--data_dir", "/nowhere"])
    assert stop.value.code == 2


@pytest.mark.parametrize("packed", [False, True])
def test_verifying_compares_with_the_published_hashes(
    packed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in (DATA / "mnist").iterdir():
        content = gzip.decompress(path.read_bytes())
        name = tmp_path / path.name.removesuffix(".gz")
        if packed:
            (tmp_path / path.name).write_bytes(gzip.compress(content))
        else:
            name.write_bytes(content)
        monkeypatch.setitem(arrays.MNIST_SHA256, name.name, hashlib.sha256(content).hexdigest())
    prepare.main(["mnist", "--data_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(r"(^|[^-])\b4 of 4 files compared with the published hashes", said)
    monkeypatch.setitem(arrays.MNIST_SHA256, "t10k-labels-idx1-ubyte", "0" * 64)
    with pytest.raises(SystemExit) as stop:
        prepare.main(["mnist", "--data_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "t10k-labels-idx1-ubyte" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_the_hashes_of_cifar_are_torchvisions(name: str) -> None:
    published = getattr(torchvision.datasets, name)
    wanted = dict([*published.train_list, *published.test_list])
    wanted[published.meta["filename"]] = published.meta["md5"]
    assert verify._cifar_md5(name.lower()) == wanted


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("no route\nto host"), "no route"), (RuntimeError(), "RuntimeError")],
)
def test_a_download_that_fails_says_why(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    assert arrays._by_torchvision(tmp_path / "t", tmp_path / "f") == said


def test_a_download_of_other_files_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(root: str, **_: Any) -> None:
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in arrays.MNIST_SHA256:
            (raw / name).write_bytes(b"something else")

    monkeypatch.setattr(torchvision.datasets, "MNIST", other)
    said = arrays._by_torchvision(tmp_path / "t", tmp_path / "f")
    assert said.endswith("has the wrong SHA-256")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("kind", "shape"), [(np.ndarray, (5,)), (list, (0,)), (np.ndarray, ()), (dict, (3,))]
)
def test_an_array_of_a_pickle_begins_empty(kind: type, shape: tuple[int, ...]) -> None:
    with pytest.raises(pickle.UnpicklingError, match="begins an array of shape"):
        cifar._reconstruct(kind, shape, b"b")
    assert cifar._reconstruct(np.ndarray, (0,), b"b").shape == (0,)


@pytest.mark.parametrize("lacking", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_images_without_their_labels_are_refused(lacking: str, tmp_path: Path) -> None:
    there = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"} - {lacking}
    (tmp_path / there.pop()).write_bytes(b"\0" * 100)
    with refused_with("lacks train-images-idx3-ubyte or its labels: fetch both again"):
        arrays.idx_pair(tmp_path, "train", arrays.DIGITS)


@pytest.mark.parametrize(("code", "is_there"), [(416, True), (404, False), (500, False)])
def test_a_server_that_has_no_more_bytes_has_sent_all(
    code: int, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.HTTPError("http://x/a", code, "no", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    content = b"all of it"
    (tmp_path / "a.part").write_bytes(content)
    digest = hashlib.md5(content).hexdigest()
    if is_there:
        fetch("http://x/a", tmp_path / "a", digest)
        assert (tmp_path / "a").read_bytes() == content
        return
    with refused_with(r"cannot fetch http://x/a .*: try again to resume, or put a into"):
        fetch("http://x/a", tmp_path / "a", digest)
    assert (tmp_path / "a.part").read_bytes() == content


def test_a_pickle_s_bytes_and_types_are_cifar_s() -> None:
    assert cifar._encode("\xff", "latin1") == b"\xff"
    with pytest.raises(pickle.UnpicklingError, match="encoded as 'utf-8'"):
        cifar._encode("\xff", "utf-8")
    assert [cifar._dtype(code) for code in ("u1", "|u1", "i8", "<i8")] == [np.uint8] * 2 + [
        np.int64
    ] * 2
    for code in ("O", "f4", ">i8", "V8"):
        with pytest.raises(pickle.UnpicklingError, match="an array of type"):
            cifar._dtype(code)


def test_what_is_not_there_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = "no file is in the form whose hashes are published: nothing was compared"
    assert verify.verify("cifar10", tmp_path) == nothing
    assert verify.verify("mnist", tmp_path) == nothing
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        monkeypatch.setitem(arrays.MNIST_SHA256, name, digest)
    said = "2 of 4 files compared with the published hashes: all equal"
    assert verify.verify("mnist", tmp_path) == said
    (tmp_path / "data_batch_1").write_bytes(b"something else")
    with refused_with("data_batch_1 has md5 .*, not .*: remove it, it is then fetched again"):
        verify.verify("cifar10", tmp_path)
