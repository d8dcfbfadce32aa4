"""What --precision auto takes, and a network's own rate: settled when a run begins, and kept."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rig
import torch
from common import DATA

import configs
import utils
from models import NETWORKS

CPU = torch.device("cpu")


def lines(said: str, beginning: str) -> str:
    """Return the lines that begin so."""
    return "\n".join(line for line in said.splitlines() if line.startswith(beginning))


def with_bf16(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(utils, "has_bf16", lambda device: has_it)


@pytest.mark.parametrize(
    ("features", "has_it"),
    [({"avx512_bf16": True}, True), ({"bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_a_cpu_is_asked_for_its_features(
    features: dict[str, bool], has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert utils.has_bf16(CPU) == has_it


@pytest.mark.parametrize(("has_it", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_new_run_takes_what_the_cpu_is_good_at_and_says_why(
    has_it: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bf16(monkeypatch, has_it)
    said = lines(rig.finish(rig.options(tmp_path / "auto", "--nEpochs", "1")), "device")
    assert f"{name} (it has {'' if has_it else 'no '}bf16 arithmetic)" in said
    asked = rig.options(tmp_path / "asked", "--nEpochs", "1", "--precision", name)
    assert f"{name}," in lines(rig.finish(asked), "device")
    assert rig.fingerprint(tmp_path / "auto") == rig.fingerprint(tmp_path / "asked")


def test_bf16_and_fp32_are_two_kinds_of_arithmetic(tmp_path: Path) -> None:
    found = set()
    for name in ("bf16", "fp32"):
        folder = tmp_path / name
        rig.finish(rig.options(folder, "--nEpochs", "1", "--precision", name))
        found.add(rig.fingerprint(folder))
    assert len(found) == 2


@pytest.mark.parametrize("began", [True, False])
def test_a_run_keeps_its_precision_on_another_machine(
    began: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bf16(monkeypatch, began)
    rig.finish(rig.options(tmp_path / "whole"))
    with_bf16(monkeypatch, not began)
    child = rig.Child(rig.options(tmp_path / "stopped"), lambda: with_bf16(monkeypatch, began))
    while child.alive() and child.steps < 15:
        pass
    child.kill(15)
    child.wait()
    said = rig.finish(rig.options(tmp_path / "stopped", "--continue"))
    assert "bit-for-bit identical" in said
    assert "as this run began" in lines(said, "device")
    assert rig.fingerprint(tmp_path / "stopped") == rig.fingerprint(tmp_path / "whole")


def test_another_precision_is_said_to_be_no_longer_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bf16(monkeypatch, True)
    rig.finish(rig.options(tmp_path, "--nEpochs", "1"))
    said = rig.finish(rig.options(tmp_path, "--nEpochs", "2", "--continue", "--precision", "fp32"))
    assert "not bit for bit" in said
    assert said.count("precision bf16 became fp32") == 1


def test_a_run_of_before_goes_on_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bf16(monkeypatch, True)
    prints = []
    for name, more in (("auto", []), ("asked", ["--precision", "fp32"])):
        shutil.copytree(DATA / "old-run", tmp_path / name)
        said = rig.finish(rig.options(tmp_path / name, "--continue", *more))
        assert "fp32" in lines(said, "device")
        prints.append(rig.fingerprint(tmp_path / name))
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    ("asked", "device", "saved", "has_bf16", "taken"),
    [
        # What is asked for is taken.
        ("fp16", "cuda", {}, False, "fp16"),
        ("fp32", "cpu", {"precision": "bf16"}, True, "fp32"),
        # A new run takes what its devices are good at.
        ("auto", "cpu", None, True, "bf16"),
        ("auto", "cpu", None, False, "fp32"),
        ("auto", "cuda", None, True, "bf16"),
        # One that has begun keeps what it began with; before it was written down, a CPU's was fp32.
        ("auto", "cpu", {"precision": "fp32"}, True, "fp32"),
        ("auto", "cpu", {"precision": "bf16"}, False, "bf16"),
        ("auto", "cpu", {}, True, "fp32"),
        ("auto", "cuda", {}, True, "bf16"),
        ("auto", "cuda", {}, False, "fp32"),
    ],
)
def test_a_precision_is_settled_once(
    asked: str, device: str, saved: dict[str, str] | None, has_bf16: bool, taken: str
) -> None:
    before: Any = None if saved is None else SimpleNamespace(settings=saved)
    found = configs._precision_name(asked, torch.device(device), before, has_bf16)
    assert found == taken


def with_peak(monkeypatch: pytest.MonkeyPatch, peak: float) -> None:
    entry = dataclasses.replace(NETWORKS["tiny"], peak=peak)
    monkeypatch.setitem(NETWORKS, "tiny", entry)


def test_a_run_keeps_the_rate_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_peak(monkeypatch, 0.02)
    cycle = "--schedule", "onecycle"
    rig.finish(rig.options(tmp_path / "whole", *cycle))
    child = rig.Child(rig.options(tmp_path / "stopped", *cycle))
    while child.alive() and child.steps < 15:
        pass
    child.kill(15)
    child.wait()
    # Another version of the table.
    with_peak(monkeypatch, 0.1)
    said = rig.finish(rig.options(tmp_path / "stopped", "--continue"))
    assert "bit-for-bit identical" in said
    assert "learning rate 0.02, onecycle" in said
    assert rig.fingerprint(tmp_path / "stopped") == rig.fingerprint(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "settings", "rate"),
    [
        ("vgg13bn", None, 0.002),
        ("vgg13_bn", None, 0.002),
        ("alexnetowtbn", None, 0.01),
        ("ninbn", None, 0.03),
        ("resnet9", None, 0.2),
        ("alexnet", None, 0.01),
        ("vgg13bn", {"peak": "0.03"}, 0.03),
        # Before it was written down, these went higher.
        ("vgg13bn", {}, 0.05),
        ("vgg13_bn", {}, 0.01),
        ("alexnetowtbn", {}, 0.05),
        ("ninbn", {}, 0.1),
        ("resnet9", {}, 0.2),
    ],
)
def test_a_rate_is_settled_once(name: str, settings: dict[str, str] | None, rate: float) -> None:
    before: Any = None if settings is None else SimpleNamespace(settings=settings)
    assert configs._peak(name, before) == rate
