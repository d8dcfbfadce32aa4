"""Train and test an image classifier: `python main.py --dataset mnist`. All options: `python main.py --help`."""

import math
import signal
import sys
import time
from typing import Any

import opts

if __name__ == "__main__":
    opts.parse()  # --help and wrong options answer here, before torch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a run takes it over: nothing is there to save yet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import configs
import utils
from metrics import Sums, average_precisions
from optimizer import Updater
from report import Tested
from run import Run

AUXILIARY = 0.3  # weight of an auxiliary head's loss (arXiv 1409.4842, section 5)


def main(argv: list[str] | None = None) -> None:
    options = opts.parse(argv)
    with configs.start(options) as run:
        train_loader, test_loader = configs.loaders(options, run)
        network = configs.network(options, run, train_loader.images)
        updater = configs.updates(options, run, network)
        configs.header(options, run, network, train_loader, test_loader)
        wrapped = utils.wrap(network, run.device, options.nGPU)
        if options.test:
            tested = test(run, network, test_loader, Sums(run.device))
            run.logger.figures(tested)
            run.report.draw(tested, [], confusion=True)
            return
        weights = configs.class_weights(options, train_loader.images, run.device)
        progress = run.resume(configs.changed(options), options.continue_, network=network, updater=updater)
        configs.record(options, run)
        for epoch in range(progress.epoch, options.nEpochs):
            started = time.perf_counter()
            sums, trained = train(run, wrapped, train_loader, updater, weights)
            tested = test(run, network, test_loader, sums)
            rate, _ = updater.schedule.at(run.share(len(train_loader), before=1))
            record = {"epoch": epoch + 1, "step": progress.step, "lr": rate, **trained, **tested}
            record |= {"seconds": time.perf_counter() - started, "peak_memory_bytes": utils.peak_memory(run.device)}
            run.finish_epoch(sums, record)
        run.summary()


def train(
    run: Run, network: nn.Module, loader: Any, updater: Updater, weights: Tensor | None = None
) -> tuple[Sums, dict[str, Any]]:
    """Train on what is left of the epoch; return its sums and its figures. weights: of each class in the loss, (K,)."""
    progress = run.progress
    network.train()
    sums = Sums(run.device) if progress.sums is None else Sums.from_state(progress.sums, run.device)
    classes = len(loader.images.classes)
    batches = loader.epoch(progress.epoch, progress.batch)
    for batch in run.watch(batches, f"epoch {progress.epoch + 1}", loader.plan.left(progress.batch)):
        utils.reseed(run.device, run.seed, progress.step, 0, run.ranks.rank)
        updater.begin(run.share(len(loader)))
        images, targets = loader.pipeline.mix(batch.images, batch.labels, classes, progress.epoch, batch.number)
        logits = network(images, heads=True)  # (N, K) of each head, the main one first
        loss = loss_of(logits, targets, weights)
        counted = updater.apply(loss, progress.step, batch.indices)
        sums.add(loss.detach(), logits[0].detach(), batch.labels, counted)
        run.show_step(updater, sums, len(loader), images)
        run.after_step(sums)
    updater.settle()
    return sums, figures("train", sums, run)


def loss_of(logits: tuple[Tensor, ...], labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the main head, (), with the auxiliary ones' added at their weight."""
    first, *others = (F.cross_entropy(head.float(), labels, weights) for head in logits)
    return first + AUXILIARY * sum(others) if others else first


@torch.no_grad()
def test(run: Run, network: nn.Module, loader: Any, trained: Sums) -> dict[str, Any]:
    """Test on every image once; return the figures. A signal saves what was trained: the test is then done again."""
    network.eval()
    sums, scores, labels, indices = Sums(run.device), [], [], []
    for batch in run.watch(loader.epoch(0), "test", loader.plan.images):
        logarithms = log_probabilities(network, batch.images)  # (N, K)
        sums.add(F.nll_loss(logarithms, batch.labels), logarithms, batch.labels)
        scores.append(logarithms.exp())
        labels.append(batch.labels)
        indices.append(torch.from_numpy(batch.indices))
        run.show_sums(sums)
        run.check_stop(trained)
    every, truth, places = (
        run.ranks.collect(torch.cat(part).cpu()) for part in (scores, labels, indices)
    )  # (N, K), (N,), (N,)
    run.report.tested = Tested(every, truth, places.numpy(), loader.images.classes, loader.some)
    return figures("test", sums, run) | {"test_map": 100 * average_precisions(every, truth).nanmean().item()}


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
    with utils.clear_errors():
        main(sys.argv[1:])
