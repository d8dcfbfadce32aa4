"""What --deterministic and --backend promise is what torch is told."""

import os

import pytest
import torch

import opts
from configs import _set_backends


@pytest.mark.parametrize(
    ("call", "expected"),
    # cuDNN, its search for the fastest way, deterministic algorithms.
    [
        ("", (True, True, False)),
        ("--deterministic", (True, False, True)),
        ("--backend nn", (False, False, False)),
        ("--nGPU 2", (True, False, False)),
        ("--nGPU 2 --parallel ranks", (True, True, False)),
    ],
)
def test_torch_is_told_what_was_asked_for(
    call: str, expected: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = True
        _set_backends(opts.parse(["--dataset", "mnist", *call.split()]))
        told = torch.are_deterministic_algorithms_enabled()
        assert (cudnn.enabled, cudnn.benchmark, told) == expected
        # Fewer bits of a product than float32 has are never taken unasked.
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        assert workspace == (":4096:8" if expected[2] else None)
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
