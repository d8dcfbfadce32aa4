"""From options to every part of a run: its surroundings here (device, folder, precision, what it
resumes from), the rest in assembly/: images, loaders, network, loss, optimizer, header.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import utils
from assembly.header import print_header, print_test_header
from assembly.images import open_both
from assembly.loaders import make_loaders, make_tested_loader
from assembly.network import make_network, make_tested_network, settle_tested
from assembly.pipelines import make_pipeline, make_test_pipeline, statistics
from assembly.training import (
    make_criterion,
    make_parallel,
    make_updater,
    memory_to_test,
    memory_to_train,
    show_range,
)
from base.arguments import number_of
from base.errors import Interrupted, Refused
from data import AnyLoader, Images
from datasets import changes, table
from datasets.images import FileImages
from model import Network
from models import NETWORKS
from options.table import FREE, Options
from report.console import Console
from report.report import Report
from run import checkpoint, folder
from run.checkpoint import Progress, Saved
from run.run import Run, RunOptions, ending
from run.signals import Signals
from run.watch import Watch
from training.ranks import Ranks, join, leave
from training.step import Step
from training.updater import Updater

__all__ = [
    "PRECISIONS",
    "make_criterion",
    "make_loaders",
    "make_network",
    "make_parallel",
    "make_pipeline",
    "make_test_pipeline",
    "make_tested_loader",
    "make_tested_network",
    "make_updater",
    "memory_to_test",
    "memory_to_train",
    "open_both",
    "print_header",
    "print_test_header",
    "resume",
    "settle_tested",
    "show_range",
    "start",
    "statistics",
]

# Of runs that wrote none down.
PEAKS_BEFORE = {"alexnetowtbn": 0.05, "ninbn": 0.1}
PEAKS_BEFORE |= {"vgg11bn": 0.05, "vgg13bn": 0.05, "vgg16bn": 0.05, "vgg19bn": 0.05}
PEAKS_BEFORE |= {"vgg11_bn": 0.01, "vgg13_bn": 0.01, "vgg16_bn": 0.01, "vgg19_bn": 0.01}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def start(options: Options) -> Iterator[Run]:
    """Open the run's folder and give what the loop needs of its surroundings. Raises Refused."""
    here, local = number_of("LOCAL_WORLD_SIZE", 1), number_of("LOCAL_RANK", 0)
    device = utils.device_for(options.GPU, options.gpus, local, here)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        utils.end_passes_at_exit()
    ranks = join(device, options.resume_command)
    _set_backends(options)
    utils.keep_memory()
    utils.reseed(device, options.manualSeed, "weights")

    # The folders that this run would make, the innermost first.
    made = [path for path in (options.folder, *options.folder.parents[:2]) if not path.exists()]
    lock = folder.Lock(options.folder)
    # All must have it: a rank without it would make the others wait.
    has_bf16 = not ranks.agree(int(not utils.has_bf16(device)))[0]
    held = lock if ranks.first else contextlib.nullcontext()

    # Signals before the lock: from here on a signal finds someone who answers it.
    with Signals() as signals, held:
        try:
            # One rank looks at the folder and changes it; the others read what it left.
            with ranks.in_turn("folder"):
                if ranks.first:
                    resume, overwrite = options.continue_, options.overwrite
                    folder.prepare_folder(
                        options.folder,
                        resume=resume,
                        overwrite=overwrite,
                        trains=not (options.test or options.findLR),
                    )
                run = _make_run(options, ranks, device, signals, lock, has_bf16)
            with ending(run):
                yield run
            leave()
        except (Refused, Interrupted):
            # Nothing half-written where nothing was.
            if made and ranks.first:
                folder.remove_empty(options.folder, made)
            raise


def _set_backends(options: Options) -> None:
    """Set what torch keeps for the whole process."""
    torch.backends.cudnn.enabled = options.backend == "cudnn"
    # DataParallel's threads are new in each step and would search anew in each.
    searches = options.backend == "cudnn" and not options.deterministic and options.gpus == 1
    torch.backends.cudnn.benchmark = searches
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.deterministic:
        # cuBLAS adds up in one order with it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    torch.use_deterministic_algorithms(options.deterministic)


def _make_run(
    options: Options,
    ranks: Ranks,
    device: torch.device,
    signals: Signals,
    lock: folder.Lock,
    has_bf16: bool,
) -> Run:
    where = options.folder
    saved = checkpoint.newest(where / "checkpoints") if options.continue_ else None
    precision = _precision_name(options.precision, device, saved, has_bf16)
    options.peak = _peak(options.netType, saved)
    console = Console(where, quiet=not ranks.first, verbose=options.verbose)
    disabled = options.logger == "none" or not ranks.first
    recorded = options.recorded()
    rescued = replace(options, expID=f"{options.expID}-rescued")
    return Run(
        folder=where,
        step=Step(
            device,
            ranks,
            options.manualSeed,
            options.accumulate,
            PRECISIONS[precision],
            options.gpus,
        ),
        options=RunOptions(
            options.nEpochs,
            options.snapshot,
            options.overwrite,
            options.stopping,
            options.resume_command,
            rescued.folder,
            rescued.resume_command,
        ),
        lock=lock,
        environment={
            **folder.environment(device, ranks, options.gpus),
            "precision": precision,
            "peak": str(options.peak),
        },
        signals=signals,
        console=console,
        report=Report(where, recorded, disabled=disabled, histograms=options.histograms),
        watch=Watch(console, where, device),
        saver=checkpoint.Saver(where / "checkpoints", options.keep, options.save_interval),
        saved=saved,
    )


def _precision_name(name: str, device: torch.device, saved: Saved | None, has_bf16: bool) -> str:
    """Return fp32, bf16 or fp16: what "auto" means is settled when a run begins, and kept.

    saved: the checkpoint that the run resumes from; has_bf16: the devices of all ranks do.
    """
    if name != "auto":
        return name
    if saved is not None and "precision" in saved.settings:
        return str(saved.settings["precision"])
    # A checkpoint of before names none: on CPUs that was fp32.
    before = saved is not None and device.type == "cpu"
    return "bf16" if has_bf16 and not before else "fp32"


def _peak(name: str, saved: Saved | None) -> float:
    """Return the highest rate of one cycle where no --LR is given: the network's own when a run
    begins, and kept.
    """
    own = NETWORKS[name].highest_rate
    if saved is None:
        return own
    # A checkpoint of before names none.
    return float(saved.settings.get("peak", PEAKS_BEFORE.get(name, own)))


def resume(
    options: Options,
    run: Run,
    network: Network,
    updater: Updater,
    train: AnyLoader,
    test: AnyLoader,
) -> Progress:
    """Fill the run from its checkpoint, if it has one, and write down what it is."""
    # An option that no bit depends on does not break exactness when it changes.
    changed = {name: pair for name, pair in options.changed.items() if name not in FREE}
    if set(changed.get("decoded", ())) == {"ram", "disk"}:
        del changed["decoded"]
    # What it means now and then is compared with the rest of what the bits depend on.
    if run.saved is not None and "precision" in run.saved.settings:
        changed.pop("precision", None)
    sides: changes.Sides = {"train": train.images, "test": test.images}
    run.images = changes.fingerprints(sides)
    before = run.saved.images if run.saved is not None else {}
    kept = run.folder / "images.npz"
    changed_images = []
    # Only the first rank tells.
    if before and run.ranks.first:
        changed_images = changes.differences(before, run.images, kept, sides)
    other = bool(before) and before["train"]["listing"] != run.images["train"]["listing"]
    relisted = bool(run.ranks.agree(int(other))[0])
    if run.ranks.first:
        split = None
        if options.valShare is not None:
            split = functools.partial(_write_split, options, train.images, test.images)
        run.record = functools.partial(
            folder.record,
            options=options.recorded(),
            environment=run.environment,
            images=run.images,
            split=split,
        )
    progress = run.resume(
        changed,
        network,
        updater,
        images=changed_images,
        relisted=relisted,
        wanted=options.continue_,
    )
    if run.ranks.first:
        changes.save(kept, sides, run.images)
    return progress


def _write_split(options: Options, train: Images, test: Images, path: Path) -> None:
    """Write the split as a table, which --dataset table reads."""
    assert isinstance(train, FileImages)
    assert isinstance(test, FileImages)
    root = options.data_dir or os.path.dirname(options.labels or "")
    table.write(path, {"train": train, "test": test}, root, escapes=True)
