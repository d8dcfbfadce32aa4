"""One GPU: no waiting within a step, precisions, and a resume that is exact.

The last ones run on the CPU too.
"""

import json
import signal
from pathlib import Path

import pytest
import rig
import torch

import configs
import main
import opts
from run import checkpoint
from run.run import Run
from run.signals import Stopped

DEVICES = [pytest.param("-1", id="cpu"), pytest.param("0", id="gpu", marks=pytest.mark.gpu)]


def arguments(folder: Path, gpu: str, *more: str) -> list[str]:
    # Without dropout's masks, which each precision draws another way, losses can be compared.
    base = ["--netType", "ninbn", "--imageSize", "20", "--cropSize", "16", "--synthetic", "96:4:20"]
    base += ["--dataset", "synthetic", "--batchSize", "32", "--GPU", gpu, "--logger", "none"]
    return [*base, "--expDir", str(folder), *more]


@pytest.mark.gpu
def test_a_step_waits_for_no_result_of_the_device(tmp_path: Path) -> None:
    options = opts.parse(
        [
            "--dataset",
            "synthetic",
            "--synthetic",
            "512:4:64",
            "--imageSize",
            "64",
            "--cropSize",
            "56",
            "--GPU",
            "0",
            "--expDir",
            str(tmp_path),
            "--logger",
            "none",
        ]
    )
    with configs.start(options) as run:
        loader, _ = configs.make_loaders(options, run)
        network = configs.make_network(options, run, loader)
        updater = configs.make_updater(options, run, network)
        criterion = configs.make_criterion(options, loader.images, run.step.device)
        run.resume({}, network, updater, wanted=False)
        torch.cuda.set_sync_debug_mode("error")
        try:
            main.train(run, network, loader, updater, criterion)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("gpu", DEVICES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_learn_as_float32_does(precision: str, gpu: str, tmp_path: Path) -> None:
    if gpu == "-1" and precision == "fp16":
        pytest.skip("float16 is slow on CPUs")
    losses = []
    for name in ("fp32", precision):
        more = ["--precision", name, "--nEpochs", "1"]
        main.main(arguments(tmp_path / name, gpu, *more))
        log = (tmp_path / name / "synthetic" / "ninbn" / "log.jsonl").read_text().splitlines()
        losses.append(json.loads(log[-1])["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("gpu", DEVICES)
def test_a_deterministic_run_resumes_bit_for_bit(
    gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.main(arguments(tmp_path / "whole", gpu, "--nEpochs", "2", "--deterministic"))
    after_step = Run.after_step

    def stopping(self: Run, sums: object) -> None:
        if self.progress.step == 2:
            self.signals.stop = signal.SIGTERM
        after_step(self, sums)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "after_step", stopping)
    with pytest.raises(Stopped):
        main.main(arguments(tmp_path / "stopped", gpu, "--nEpochs", "2", "--deterministic"))
    monkeypatch.undo()
    main.main(arguments(tmp_path / "stopped", gpu, "--continue"))
    found = [
        checkpoint.newest(tmp_path / name / "synthetic" / "ninbn" / "checkpoints")
        for name in ("whole", "stopped")
    ]
    digests = []
    for newest in found:
        assert newest is not None
        digest = rig.hashlib.sha256()
        rig.feed(digest, newest.parts)
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1]
