"""Train and test an image classifier: `python main.py --dataset mnist`.

All options: `python main.py --help`.
"""

from base import process

if __name__ == "__main__":
    # Before anything else: a signal ends even the imports below in one line.
    process.begin()

import itertools
import math
import os
import sys
import time

import opts
from run import launch

if __name__ == "__main__":
    # DDP warns of a search for unused parameters, which `training.ranks` wants.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # --help and wrong options answer here, before torch is imported.
    given = opts.parse()
    if given.parallel == "ranks" and given.nGPU > 1 and not launch.is_rank():
        launch.start_ranks(given.nGPU, __file__, sys.argv[1:])

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import configs
import utils
from base.errors import Failed, clear_errors
from data import Loader
from datasets.fold import Fold
from datasets.images import display_names
from report import record
from report.record import TestMetrics, TrainMetrics
from report.tables import Tested
from run import folds
from run.run import Run
from training import lr_range
from training.lr_range import RangeTest
from training.metrics import Criterion, Sums, average_precisions
from training.ranks import reduced_if
from training.step import Step
from training.updater import Updater


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says. Raises Refused, Failed, SystemExit."""
    options = opts.parse(argv)
    if options.test:
        test_alone(options)
        return
    if options.folds:
        cross_validate(options, sys.argv[1:] if argv is None else argv)
        return
    with configs.start(options) as run:
        # Workers start here, before anything else runs in a thread: see docs/architecture.md.
        train_loader, test_loader = configs.make_loaders(options, run)
        network = configs.make_network(options, run, train_loader)
        updater = configs.make_updater(options, run, network)
        configs.print_header(options, run, network, train_loader, test_loader)
        parallel = configs.make_parallel(options, run, network)
        criterion = configs.make_criterion(options, train_loader.images, run.step.device)
        if options.findLR:
            # No weights are kept of it.
            updater.schedule = lr_range.Rising(updater.schedule.at(0)[1])
            with configs.memory_to_train(options, run, parallel, updater, criterion):
                found = range_test(run, parallel, train_loader, updater, criterion)
            configs.show_range(options, run, found)
            return
        progress = configs.resume(options, run, network, updater, train_loader, test_loader)
        tested = None
        for epoch in range(progress.epoch, options.nEpochs):
            # Out of patience or time.
            if run.ended:
                break
            started = time.perf_counter()
            with configs.memory_to_train(options, run, parallel, updater, criterion):
                sums, trained = train(run, parallel, train_loader, updater, criterion)
            # Each rank norms its own share, so their running statistics differ. Rank 0's are saved,
            # so they are what is tested too.
            run.ranks.share_buffers(updater.network_for_eval)
            with configs.memory_to_test(options, run, updater.network_for_eval):
                tested = test(run, updater.network_for_eval, test_loader, sums)

            line = record.join(
                trained,
                tested.metrics,
                epoch=epoch + 1,
                step=progress.step,
                lr=updater.schedule.at(run.share_done(len(train_loader), before=1))[0],
                seconds=time.perf_counter() - started,
                peak_memory_bytes=utils.peak_memory(run.step.device, run.step.gpus),
            )
            run.finish_epoch(sums, line, tested)
        run.summary()
        if options.fold:
            if tested is None:
                tested = test(run, updater.network_for_eval, test_loader, run.restored_sums())
            folds.write_left_out(tested, run)


def cross_validate(options: opts.Options, argv: list[str]) -> None:
    """Train a run for each fold, and write what they say of the images they had not seen."""
    together = options.folder.with_name(f"{options.expID}-folds")
    folds.refuse_others(together)
    folders = []
    for fold in Fold.all(options.folds or 0):
        words = [*argv, "--fold", str(fold), f"--expID={options.expID}-{fold.suffix}"]
        folders.append(opts.parse(words).folder)
        with folds.announced(fold, options.command_to_continue(argv)):
            main(words)
    folds.refuse_different(folders, options.may_differ)
    folds.join(folders, together)


def test_alone(options: opts.Options) -> None:
    """Test the weights that are given. What is not given of options comes from them."""
    value, spec = configs.settle_tested(options)
    with configs.start(options) as run:
        loader = configs.make_tested_loader(options, run, spec.classes if spec else None)
        network = configs.make_tested_network(options, run, loader.images, value, spec)
        configs.print_test_header(options, run, network, loader)
        with configs.memory_to_test(options, run, network):
            tested = test(run, network, loader, Sums(run.step.device))
        run.console.show_test(tested.metrics)
        run.report.draw_test(tested)
        if not math.isfinite(tested.metrics.test_loss or 0.0):
            name, precision = options.retrain or options.netType, run.environment["precision"]
            raise Failed(
                f"{name}: the loss is not finite in {precision}: its weights are too large"
            )


def range_test(
    run: Run, network: nn.Module, loader: Loader, updater: Updater, criterion: Criterion
) -> RangeTest:
    """Train at rising learning rates until the loss diverges, at most for the steps that fit into
    the time.
    """
    network.train()
    classes, count, started = len(loader.images.classes), lr_range.MAX_STEPS, time.perf_counter()
    rates: list[float] = []
    losses: list[float] = []
    endless = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())

    for number, batch in enumerate(endless):
        # The first step also starts workers, the next two tell how long one takes.
        if number == 1:
            started = time.perf_counter()
        if number == 3:
            seconds = (time.perf_counter() - started) / 2
            count = run.ranks.agree(lr_range.steps_in_time(seconds))[0]
        updater.begin(number / count)
        images, targets = loader.pipeline.mix(batch.images, batch.labels, classes, 0, number)
        loss, _ = gradients(
            run.step, network, updater, criterion, images, targets, batch.total, number
        )
        updater.apply(loss, number, batch.indices)
        rates.append(updater.lr)
        losses.append(run.ranks.sum((loss * len(images) / batch.total)[None]).item())
        if lr_range.has_diverged(losses) or number + 1 == count:
            break
    return RangeTest(rates, losses)


def train(
    run: Run, network: nn.Module, loader: Loader, updater: Updater, criterion: Criterion
) -> tuple[Sums, TrainMetrics]:
    """Train on what is left of the epoch; return its sums and metrics."""
    network.train()
    progress, classes = run.progress, len(loader.images.classes)
    sums = run.restored_sums()
    batches = loader.epoch(progress.epoch, progress.batch)
    # A resumed epoch counts only the images that are left of it.
    title, left = f"epoch {progress.epoch + 1}", loader.plan.images_left(progress.batch)

    for batch in run.batches(batches, sums, title, left):
        updater.begin(run.share_done(len(loader)))
        images, targets = loader.pipeline.mix(
            batch.images, batch.labels, classes, progress.epoch, batch.index
        )
        # The loss and the scores stay on the device: nothing in this loop waits for them.
        loss, logits = gradients(
            run.step, network, updater, criterion, images, targets, batch.total, progress.step
        )
        counted = updater.apply(loss, progress.step, batch.indices)
        sums.add(loss, logits, batch.labels, counted, batch.total)
        run.show_step(sums, images, batch.labels, len(loader))
        run.after_step(sums)

    # The last checks are still on their way from the device: a bad step must end the run here, not
    # in the next epoch.
    updater.settle()
    means, clock = sums.means(run.ranks), run.watch.clock
    run.watch.training = clock
    rate = clock.images / clock.seconds if clock.seconds else None
    left_out = run.watch.left_out("training", loader.bad)
    return sums, TrainMetrics(
        means.loss, means.top1, means.top5, rate, clock.data, clock.compute, left_out
    )


def gradients(
    step: Step,
    network: nn.Module,
    updater: Updater,
    criterion: Criterion,
    images: Tensor,
    targets: Tensor,
    total: int,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Forward and backward pass, part by part; return this rank's mean loss, (), and logits, (N,
    K).

    images: (N, 3, S, S) uint8; targets: (N,) or (N, K); total: images of the batch over all ranks,
    whose mean loss the gradients are of, whatever a rank's or a part's share; number: of the step,
    from 0.
    """
    # A short batch is trained in fewer parts: none is too small for batch norm.
    parts = max(1, min(step.accumulate, len(images) // updater.least_images))
    losses, logits = [], []
    pairs = zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)

    for part, (pixels, labels) in enumerate(pairs):
        step.reseed(number, part)
        with reduced_if(part == parts - 1, network):
            with step.autocast():
                heads = network(pixels, heads=True)  # (n, K) of each head, the main one first
            loss = criterion(heads, labels) / max(1, total)
            # The ranks' gradients are averaged, this makes them add up.
            updater.backward(loss * step.ranks.world)
        # Without their graphs: they would keep every part's activations alive.
        losses.append(loss.detach())
        logits.append(heads[0].detach().float())

    return torch.stack(losses).sum() * (total / max(1, len(images))), torch.cat(logits)


@torch.no_grad()
def test(run: Run, network: nn.Module, loader: Loader, trained: Sums) -> Tested:
    """Test on every image once. A signal saves what was trained: the test is then repeated."""
    network.eval()
    sums = Sums(run.step.device)
    scores = []
    labels = []
    indices = []

    for batch in run.batches(loader.epoch(0), trained, "test", loader.plan.image_count):
        with run.step.autocast():
            # (N, K), the mean over mirror images or ten crops where that is asked for.
            log_probs = log_probabilities(network, batch.images, loader.pipeline.mirrored)
        loss = F.nll_loss(log_probs, batch.labels, reduction="sum") / max(1, len(batch.labels))
        sums.add(loss, log_probs, batch.labels)
        # Average precision needs all scores of all images at once.
        scores.append(log_probs.exp())
        labels.append(batch.labels)
        indices.append(torch.from_numpy(batch.indices))
        run.watch.sums_beside_bar(sums)
        run.check_stop(trained)

    means, seconds = sums.means(run.ranks), run.watch.clock.seconds
    collected = [run.ranks.collect(torch.cat(part).cpu()) for part in (scores, labels, indices)]
    probabilities, every_label, every_index = collected  # (N, K), (N,), (N,)
    # Only rank 0 has the scores of all ranks; the others' value is never shown.
    precisions = torch.zeros(1)
    if run.ranks.first:
        precisions = average_precisions(probabilities, every_label)
    # None where there was no image: JSON has no NaN.
    known = precisions[precisions.isfinite()]
    mean_precision = 100 * known.mean().item() if len(known) else None
    left_out = run.watch.left_out("testing", loader.bad)

    metrics = TestMetrics(means.loss, means.top1, means.top5, seconds, mean_precision, left_out)
    images = loader.images
    return Tested(
        metrics,
        probabilities,
        every_label,
        every_index.numpy(),
        display_names(images),
        images.path,
        loader.preview,
        loader.whole,
    )


def log_probabilities(network: nn.Module, images: Tensor, mirrored: bool = False) -> Tensor:
    """Return (N, K).

    images: (N, 3, S, S); mirrored: the mean over them and their mirror images. (N, 5, 3, S, S): the
    mean over these five and their mirror images.
    """
    if images.dim() == 4 and not mirrored:
        return network(images).float().log_softmax(1)
    parts = images.unbind(1) if images.dim() == 5 else (images,)
    views = [view for part in parts for view in (part, part.flip(3))]
    log_probs = torch.stack([network(view).float().log_softmax(1) for view in views])  # (V, N, K)

    # In logarithms, where no small probability becomes 0.
    return log_probs.logsumexp(0) - math.log(len(views))


if __name__ == "__main__":
    with clear_errors(opts.WAYS_OUT):
        main(sys.argv[1:])
