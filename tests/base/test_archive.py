"""A checkpoint is data only, and whole."""

import os
import resource
import signal
import warnings
from pathlib import Path

import payloads
import pytest
import torch


@pytest.fixture(autouse=True)
def _own_signals():
    """The campaigns set handlers for children; give back what was there."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_weights_are_only_data_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"network": payloads.Call(os.mkdir, str(tmp_path / "touched"))}, tmp_path / "bad.pt")
    # Not by the error that a warning is in tests.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(payloads.archive.Damaged):
            payloads.archive.read(tmp_path / "bad.pt")
    assert not (tmp_path / "touched").exists()
    assert (
        resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    )  # the limits were the children's alone
