"""Train and test an image classifier: `python main.py --dataset mnist`. All options: `python main.py --help`."""

import math
import os
import signal
import sys
import time
from typing import Any

import opts

if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of a search that `ranks.wrap` wants
    opts.parse()  # --help and wrong options answer here, before torch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a run takes it over: nothing is there to save yet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import configs
import utils
from base.errors import clear_errors
from datasets.images import titles
from report.tables import Tested
from run.memory import enough_memory
from run.run import Run
from training.metrics import Criterion, Sums, average_precisions
from training.ranks import only_last
from training.updater import Updater


def main(argv: list[str] | None = None) -> None:
    options = opts.parse(argv)
    with configs.start(options) as run:
        train_loader, test_loader = configs.loaders(options, run)
        network = configs.network(options, run, train_loader.images)
        updater = configs.updates(options, run, network)
        configs.header(options, run, network, train_loader, test_loader)
        wrapped = configs.wrapped(options, run, network)
        if options.test:
            tested = test(run, updater.tested, test_loader, Sums(run.device))
            run.logger.figures(tested)
            run.report.draw(tested, [], confusion=True)
            return
        criterion = configs.criterion(options, train_loader.images, run.device)
        progress = run.resume(configs.changed(options), options.continue_, network=network, updater=updater)
        configs.record(options, run)
        for epoch in range(progress.epoch, options.nEpochs):
            started = time.perf_counter()
            with enough_memory(run, options.batchSize, options.cropSize, wrapped, criterion):
                sums, trained = train(run, wrapped, train_loader, updater, criterion)
            run.ranks.share_buffers(updater.tested)
            tested = test(run, updater.tested, test_loader, sums)
            rate, _ = updater.schedule.at(run.share(len(train_loader), before=1))
            record = {"epoch": epoch + 1, "step": progress.step, "lr": rate, **trained, **tested}
            record |= {"seconds": time.perf_counter() - started, "peak_memory_bytes": utils.peak_memory(run.device)}
            run.finish_epoch(sums, record)
        run.summary()


def train(run: Run, network: nn.Module, loader: Any, updater: Updater, criterion: Criterion) -> tuple[Sums, dict[str, Any]]:
    """Train on what is left of the epoch; return its sums and its figures."""
    progress = run.progress
    network.train()
    sums = Sums(run.device) if progress.sums is None else Sums.from_state(progress.sums, run.device, run.ranks)
    classes = len(loader.images.classes)
    batches = loader.epoch(progress.epoch, progress.batch)
    for batch in run.watch(batches, f"epoch {progress.epoch + 1}", loader.plan.left(progress.batch), sums):
        updater.begin(run.share(len(loader)))
        images, targets = loader.pipeline.mix(batch.images, batch.labels, classes, progress.epoch, batch.number)
        loss, logits = gradients(run, network, updater, criterion, images, targets, batch.total)
        counted = updater.apply(loss, progress.step, batch.indices)
        sums.add(loss, logits, batch.labels, counted, batch.total)
        run.show_step(updater, sums, len(loader), images)
        run.after_step(sums)
    updater.settle()
    return sums, figures("train", sums, run) | run.left_out("train", loader.bad)


def gradients(
    run: Run, network: nn.Module, updater: Updater, criterion: Criterion, images: Tensor, targets: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """Forward and backward pass, part by part; return this rank's mean loss, (), and logits, (N, K).

    total: images of the batch over all ranks, whose mean loss the gradients are of, whatever a rank's or a part's share.
    """
    count = min(run.accumulate, max(1, len(images)))
    losses, logits = [], []
    for number, (pixels, truth) in enumerate(zip(images.tensor_split(count), targets.tensor_split(count), strict=True)):
        utils.reseed(run.device, run.seed, run.progress.step, number, run.ranks.rank)
        with only_last(network, number == count - 1):
            with run.autocast():
                heads = network(pixels, heads=True)  # (n, K) of each head, the main one first
            loss = criterion(heads, truth) / max(1, total)
            updater.backward(loss * run.ranks.world)  # the ranks' gradients are averaged
        losses.append(loss.detach())
        logits.append(heads[0].detach().float())
    return torch.stack(losses).sum() * (total / max(1, len(images))), torch.cat(logits)


@torch.no_grad()
def test(run: Run, network: nn.Module, loader: Any, trained: Sums) -> dict[str, Any]:
    """Test on every image once; return the figures. A signal saves what was trained: the test is then done again."""
    network.eval()
    sums, scores, labels, indices = Sums(run.device), [], [], []
    for batch in run.watch(loader.epoch(0), "test", loader.plan.images, trained):
        with run.autocast():
            logarithms = log_probabilities(network, batch.images)  # (N, K)
        loss = F.nll_loss(logarithms, batch.labels, reduction="sum") / max(1, len(batch.labels))
        sums.add(loss, logarithms, batch.labels)
        scores.append(logarithms.exp())
        labels.append(batch.labels)
        indices.append(torch.from_numpy(batch.indices))
        run.show_sums(sums)
        run.check_stop(trained)
    every, truth, places = (
        run.ranks.collect(torch.cat(part).cpu()) for part in (scores, labels, indices)
    )  # (N, K), (N,), (N,)
    run.report.tested = Tested(every, truth, places.numpy(), titles(loader.images), loader.some)
    precisions = average_precisions(every, truth) if run.ranks.first else torch.zeros(1)
    found = figures("test", sums, run) | {"test_map": 100 * precisions.nanmean().item()}
    return found | run.left_out("test", loader.bad)


def log_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Return (N, K). images: (N, 3, S, S), or (N, 5, 3, S, S): the mean over these five and their mirror images then."""
    if images.dim() == 4:
        return network(images).float().log_softmax(1)
    crops = [view for part in images.unbind(1) for view in (part, part.flip(3))]
    every = torch.stack([network(crop).float().log_softmax(1) for crop in crops])  # (10, N, K)
    return every.logsumexp(0) - math.log(len(crops))  # in logarithms, where no small probability becomes 0


def figures(name: str, sums: Sums, run: Run) -> dict[str, Any]:
    """Return the log's figures of a pass that has just ended."""
    result = {f"{name}_{key}": value for key, value in sums.result(run.ranks).items()}
    clock = run.clock
    if name == "test":
        return result | {"test_seconds": clock.seconds}
    return result | {
        "images_per_second": clock.images / clock.seconds if clock.seconds else None,
        "data_seconds": clock.data,
        "compute_seconds": clock.compute,
    }


if __name__ == "__main__":
    with clear_errors():
        main(sys.argv[1:])
