"""Whole training steps: images/s, where a step's time goes, memory, how far from the machine's
limit; a peer beside it.

Every part of main.py's loop is in: loading, augmentation, loss, checked update, sums. The peer is
the loop of torchvision's reference recipe on the same network and batch: its transforms and float32
normalisation on the host, its loss and accuracies read every step; on a GPU in the same precision,
on a CPU in float32, where that recipe has no other. fp32 is ours without bf16, where that is what
it takes, `not compiled` ours beside --compile. bare is the network's forward, backward and update
alone, on one batch that lies on the device. Without --data_dir the images are synthetic arrays;
--dataset mnist takes the digits.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

import configs
import main as suite
import model
import opts
import utils
from base.arguments import core_count
from base.errors import clear_errors
from base.text import print_table
from benchmark import timing
from loading.deaths import end_workers
from run.checkpoint import Progress
from training.metrics import Sums

PARTS = ("wait", "copy", "augment", "forward", "backward", "update", "sums")


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Seconds of a step by part; the device is waited for at each change.

    wait: until a batch is in the host's memory; copy: on to the device; augment: what the main
    process does of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.now = ""
        self.since = time.perf_counter()

    def _change(self, part: str) -> str:
        """Begin a part; return the one that was going on."""
        wait(self.device)
        now = time.perf_counter()
        if self.now:
            self.seconds[self.now] += now - self.since
        before, self.now, self.since = self.now, part, now
        return before

    def around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return what calls the function as this part."""

        def timed(*args: Any, **named: Any) -> Any:
            before = self._change(part)
            try:
                return function(*args, **named)
            finally:
                self._change(before)

        return timed

    def each(self, values: Iterator[Any], part: str) -> Iterator[Any]:
        """Yield the values; waiting for them is this part."""
        following = self.around(values.__next__, part)
        with contextlib.suppress(StopIteration):
            while True:
                yield following()

    @contextlib.contextmanager
    def timed(self, ours: "Ours") -> Iterator[None]:
        """Time the parts within main.train: the methods that it calls are wrapped."""
        loader, updater = ours.loader, ours.updater
        methods = [
            (loader.pipeline, "apply_steps", "augment"),
            (loader.pipeline, "mix", "augment"),
            (ours.parallel, "forward", "forward"),
            (updater, "begin", "update"),
            (updater, "backward", "backward"),
            (updater, "apply", "update"),
        ]
        if hasattr(loader, "_rows"):
            methods += [(loader, "_rows", "wait"), (loader.pipeline, "cut_arrays", "augment")]
        with contextlib.ExitStack() as stack:
            for owner, name, part in methods:
                wrapped = self.around(getattr(owner, name), part)
                stack.enter_context(mock.patch.object(owner, name, wrapped))
            for name, part in (("_read", "wait"), ("epoch", "copy")):
                if hasattr(loader, name):
                    original = getattr(loader, name)
                    wrapped = self._each_of(original, part)
                    stack.enter_context(mock.patch.object(loader, name, wrapped))
            add, around = Sums.add, self.around

            def timed_add(sums: Sums, *values: Any) -> None:
                around(add, "sums")(sums, *values)

            stack.enter_context(mock.patch.object(Sums, "add", timed_add))
            yield

    def _each_of(self, make: Callable[..., Iterator[Any]], part: str) -> Callable[..., Any]:
        return lambda *args: self.each(make(*args), part)


class Ours:
    """main.train over one pass of a loader, set up as main.py does it."""

    def __init__(self, options: opts.Options, stack: contextlib.ExitStack) -> None:
        self.run = stack.enter_context(configs.start(options))
        self.device = self.run.step.device
        self.loader, _ = configs.make_loaders(options, self.run)
        self.network = configs.make_network(options, self.run, self.loader)
        self.updater = configs.make_updater(options, self.run, self.network)
        self.run.parts = (self.network, self.updater)
        self.parallel = configs.make_parallel(options, self.run, self.network)
        self.criterion = configs.make_criterion(options, self.loader.images, self.device)

    def train(self) -> list[float]:
        """Train on one pass; return its seconds a step."""
        # Each pass is the first epoch again: the same images, and never the end of a run.
        self.run.progress = Progress(epoch=0, step=self.run.progress.step + 1)
        wait(self.device)
        started = time.perf_counter()
        suite.train(self.run, self.parallel, self.loader, self.updater, self.criterion)
        return [(time.perf_counter() - started) / len(self.loader)]

    def bare(self) -> list[float]:
        """Return the seconds a step of the network alone: one batch, on the device."""
        batch = next(iter(self.loader.epoch(0)))
        plain = torch.optim.SGD(self.network.parameters(), 0.001, 0.9, fused=True)
        wait(self.device)
        started = time.perf_counter()
        for _ in range(len(self.loader)):
            with self.run.step.autocast():
                heads = self.parallel(batch.images, heads=True)
            loss = F.cross_entropy(heads[0].float(), batch.labels)
            plain.zero_grad(set_to_none=True)
            loss.backward()
            plain.step()
        wait(self.device)
        return [(time.perf_counter() - started) / len(self.loader)]


class Theirs:
    """The loop of torchvision's references/classification/train.py, with its transforms, on the
    same network.
    """

    def __init__(
        self, arguments: argparse.Namespace, name: str, folder: Any, sizes: tuple[int, int]
    ) -> None:
        from torchvision import datasets
        from torchvision import transforms as v1

        self.device = torch.device(
            "cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu"
        )
        tail = [v1.ToTensor(), v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        if arguments.dataset == "mnist":
            steps = [v1.Grayscale(3), v1.RandomCrop(28, 2), *tail]
            images: Any = datasets.MNIST(folder, transform=v1.Compose(steps))
        else:
            steps = [v1.Resize(sizes[0]), v1.RandomCrop(sizes[1]), v1.RandomHorizontalFlip(), *tail]
            images = datasets.ImageFolder(folder, v1.Compose(steps))
        count = min(len(images), arguments.batchSize * arguments.steps)
        classes = images.classes
        images = torch.utils.data.Subset(images, torch.randperm(len(images))[:count].tolist())
        self.loader = torch.utils.data.DataLoader(
            images,
            arguments.batchSize,
            shuffle=True,
            num_workers=arguments.nThreads,
            persistent_workers=arguments.nThreads > 0,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if arguments.nThreads else None,
        )
        # The recipe's --amp is CUDA's.
        wanted = arguments.precision if self.device.type == "cuda" else "fp32"
        self.precision = precision_of(wanted, self.device)
        self.network = model.create(name, classes, sizes[1]).body.to(self.device).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.001, 0.9, weight_decay=5e-4)

    def pass_(self) -> list[float]:
        started, seen = time.perf_counter(), 0.0
        for images, labels in self.loader:
            images, labels = (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision is not None
            ):
                output = self.network(images)
                heads = output if isinstance(output, tuple) else (output,)
                loss = F.cross_entropy(heads[0], labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            best = heads[0].topk(min(5, heads[0].shape[1]), 1).indices == labels[:, None]
            seen += (
                loss.item() + best[:, 0].float().mean().item() + best.float().sum(1).mean().item()
            )
        return [(time.perf_counter() - started) / len(self.loader)]


def precision_of(name: str, device: torch.device) -> torch.dtype | None:
    """Return autocast's type as a new run takes it, None for float32 throughout."""
    if name == "auto":
        name = "bf16" if utils.has_bf16(device) else "fp32"
    return configs.PRECISIONS[name]


def matmul_rate(device: torch.device, kind: torch.dtype | None) -> float:
    """Return the multiply-adds a second of a large matrix product: the limit of convolutions."""
    size = 8192 if device.type == "cuda" else 3072
    a = torch.randn(size, size, device=device, dtype=kind or torch.float32)
    rates = []
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        _ = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(size**3 / (time.perf_counter() - started))
    return max(rates)


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--netType", nargs="+", default=["alexnetbn"], help="networks (default: alexnetbn)"
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="(default: auto)",
    )
    parser.add_argument(
        "--dataset",
        default="folder",
        choices=["folder", "mnist"],
        help="(default: folder, or synthetic)",
    )
    parser.add_argument(
        "--data_dir", help="folder with train/ (default: synthetic images; MNIST's usual place)"
    )
    parser.add_argument(
        "--imageSize", type=int, default=256, help="shorter side, pixels (default: 256)"
    )
    parser.add_argument(
        "--cropSize", type=int, default=224, help="side of the crop, pixels (default: 224)"
    )
    parser.add_argument("--batchSize", type=int, default=128, help="(default: 128)")
    parser.add_argument("--steps", type=int, default=20, help="a repetition (default: 20)")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=3,
        help="alternating, after one that is not counted (default: 3)",
    )
    parser.add_argument(
        "--augment",
        default="crop,flip",
        help="ours; the peer's is random crop and flip (default: crop,flip)",
    )
    parser.add_argument(
        "--nThreads",
        type=int,
        default=min(8, core_count()),
        help="processes that read",
    )
    parser.add_argument(
        "--peer",
        choices=["torchvision"],
        help="measure the reference recipe's loop in the same run",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile our network, and measure it so and not"
    )
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--plot", type=Path, help="picture of a step's parts")
    return parser.parse_args(argv)


def options_of(
    arguments: argparse.Namespace, name: str, folder: str, precision: str
) -> opts.Options:
    """Return main.py's options for this benchmark. folder: for the run."""
    limit = arguments.batchSize * arguments.steps
    words = ["--netType", name, "--batchSize", arguments.batchSize, "--precision"]
    words += [precision, "--nThreads", arguments.nThreads, "--expDir", folder]
    words += ["--limit", limit, "--saveEvery", 1 << 40, "--logger", "none", "--LR", 0.001]
    words += ["--overwrite", *(["--compile"] if arguments.compile else [])]
    words += ["--GPU", "-1"] if arguments.cpu or not torch.cuda.is_available() else []
    sizes = ["--imageSize", arguments.imageSize, "--cropSize", arguments.cropSize]
    if arguments.dataset == "mnist":
        words += ["--dataset", "mnist"]
    elif arguments.data_dir:
        words += ["--dataset", "folder", *sizes, "--augment", arguments.augment]
    else:
        count = max(arguments.batchSize * 2, 256)
        shape = f"{count}:{min(1000, count)}:{arguments.imageSize}"
        words += ["--dataset", "synthetic", "--synthetic", shape, *sizes]
        words += ["--augment", arguments.augment]
    words += ["--data_dir", arguments.data_dir] if arguments.data_dir else []
    return opts.parse([str(word) for word in words])


def main() -> None:
    arguments = arguments_of()
    with clear_errors(opts.WAYS_OUT):
        results = {name: measure(arguments, name) for name in arguments.netType}
        timing.write(arguments.json, {"networks": results})
        if arguments.plot:
            plot(results, arguments.plot)
    end_workers()  # the peer's own shutdown can hang beside another pool's


def peer_folder(arguments: argparse.Namespace) -> str | None:
    """Return where the peer finds the same images, None for synthetic ones."""
    if arguments.dataset == "mnist":
        return arguments.data_dir or os.path.expanduser("~/.cache/multi-gpu-torch")
    return f"{arguments.data_dir}/train" if arguments.data_dir else None


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure one network: print its table and return its figures."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        options = options_of(arguments, name, folder, arguments.precision)
        ours = Ours(options, stack)
        ways: dict[str, Callable[[], list[float]]] = {"ours": ours.train, "bare": ours.bare}
        if ours.run.step.precision is not None:
            beside = options_of(arguments, name, f"{folder}/fp32", "fp32")
            ways["fp32"] = Ours(beside, stack).train
        if arguments.compile:
            eager = argparse.Namespace(**vars(arguments) | {"compile": False})
            beside = options_of(eager, name, f"{folder}/eager", arguments.precision)
            ways["not compiled"] = Ours(beside, stack).train
        root = peer_folder(arguments)
        if arguments.peer and root is not None:
            sizes = options.imageSize, options.cropSize
            ways["torchvision"] = Theirs(arguments, name, root, sizes).pass_
        for way in ways.values():  # compiles, fills caches, starts workers
            way()
        runs = timing.alternate(ways, arguments.repetitions)
        figures = {way: timing.summary(times) for way, times in runs.items()}
        parts = Parts(ours.device)
        with parts.timed(ours):
            whole = ours.train()[0] * len(ours.loader)

        batch = min(arguments.batchSize, ours.loader.plan.image_count)
        limit = matmul_rate(ours.device, ours.run.step.precision)
        needed = 3 * model.multiply_adds(ours.network)  # forward, and twice as much backward
        _add_shares(figures, batch, needed / limit)
        title = f"{name}, {ours.device.type}, {arguments.precision}"
        print_table([[title, *HEADINGS], *_rows(figures)])
        steps = len(ours.loader)
        milliseconds = {part: 1000 * value / steps for part, value in parts.seconds.items()}
        print("a step of ours: " + ", ".join(f"{p} {v:.2f} ms" for p, v in milliseconds.items()))
        memory = utils.peak_memory(ours.device)
        waiting = parts.seconds["wait"] / whole
        peak = f"at most {memory / 2**20:.0f} MiB"
        print(f"waiting for data: {waiting:.1%} of the time; {peak}\n", flush=True)
        return {
            "figures": figures,
            "milliseconds": milliseconds,
            "waiting": waiting,
            "peak_memory_bytes": memory,
            "multiply_adds_a_second": limit,
            "cores": core_count(),
        }


HEADINGS = ("ms a step", "images/s", "of matmul", "ours is")


def _add_shares(figures: dict[str, dict[str, float]], batch: int, least: float) -> None:
    """Add what follows from the seconds. batch: images; least: seconds an image by matmul."""
    for figure in figures.values():
        seconds = figure["seconds_per_batch"]
        figure["images_per_second"] = batch / seconds
        figure["share_of_matmul"] = least * batch / seconds
        figure["ours_is_faster_by"] = seconds / figures["ours"]["seconds_per_batch"]


def _rows(figures: dict[str, dict[str, float]]) -> list[list[str]]:
    return [
        [
            way,
            f"{1000 * figure['seconds_per_batch']:.1f}",
            f"{figure['images_per_second']:.0f}",
            f"{figure['share_of_matmul']:.0%}",
            f"x {figure['ours_is_faster_by']:.3f}",
        ]
        for way, figure in figures.items()
    ]


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw each network's step as a bar of its parts."""
    from matplotlib.figure import Figure

    from report import pictures

    figure = Figure(figsize=(9, 1.5 + 0.6 * len(results)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(results)
    for part, colour in zip(PARTS, pictures.COLOURS, strict=False):
        widths = [result["milliseconds"][part] for result in results.values()]
        axes.barh(list(results), widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("ms a step")
    axes.legend(fontsize=8)
    pictures.save(figure, path)


if __name__ == "__main__":
    main()
