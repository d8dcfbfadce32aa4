"""Whole training steps: images/s, where a step's time goes, memory, how far from the machine's limit; a peer beside it.

Every part of main.py's loop is in: loading, augmentation, loss, checked update, sums. The peer is the loop of torchvision's
reference recipe on the same network, batch and precision: its transforms and float32 normalisation on the host, its loss
and accuracies read every step. bare is the network's forward, backward and update alone, on one batch that lies on the
device. Without --data_dir the images are synthetic arrays; --dataset mnist takes the digits.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

import augmentation
import configs
import data
import main as suite
import model
import utils
from base.errors import clear_errors
from base.text import print_table
from benchmark import timing
from loading.deaths import end_workers
from loading.plan import Plan
from training.metrics import Criterion, Sums
from training.ranks import Ranks
from training.schedule import make_schedule
from training.updater import Updater, make_optimizer
from transforms import Pipeline

PARTS = ("wait", "copy", "augment", "forward", "backward", "update", "sums")


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Seconds of a step by part; the device is waited for at each change. device: None measures nothing.

    wait: until a batch is in the host's memory; copy: on to the device; augment: what the main process does of it.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self.now, self.since = "", time.perf_counter()

    def _change(self, part: str) -> str:
        """Begin a part; return the one that was going on."""
        if self.device is None:
            return ""
        wait(self.device)
        now = time.perf_counter()
        if self.now:
            self.seconds[self.now] += now - self.since
        before, self.now, self.since = self.now, part, now
        return before

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        before = self._change(part)
        try:
            yield
        finally:
            self._change(before)

    def around(self, function: Any, part: str) -> Any:
        """Return what calls the function as this part."""
        if self.device is None:
            return function

        def timed(*args: Any, **named: Any) -> Any:
            with self.of(part):
                return function(*args, **named)

        return timed

    def each(self, values: Iterator[Any], part: str) -> Iterator[Any]:
        """Yield the values; waiting for them is this part."""
        following = self.around(values.__next__, part)
        with contextlib.suppress(StopIteration):
            while True:
                yield following()

    def _each_of(
        self, values: Callable[[], Iterator[Any]], part: str
    ) -> Callable[[], Iterator[Any]]:
        return lambda: self.each(values(), part)

    @contextlib.contextmanager
    def inside(self, loader: Any, updater: Updater) -> Iterator[None]:
        """Time the parts within the loader's and the updater's own methods, too."""
        with contextlib.ExitStack() as stack:
            if self.device is not None:
                inner = [(loader.pipeline, "finish", "augment"), (updater, "backward", "backward")]
                inner += (
                    [(loader, "_rows", "wait"), (loader.pipeline, "arrays", "augment")]
                    if hasattr(loader, "_rows")
                    else []
                )
                for owner, name, part in inner:
                    stack.enter_context(
                        mock.patch.object(owner, name, self.around(getattr(owner, name), part))
                    )
                if hasattr(loader, "_read"):
                    stack.enter_context(
                        mock.patch.object(loader, "_read", self._each_of(loader._read, "wait"))
                    )
            yield


class Ours:
    """main.py's loop over one pass of a loader, with the time of its parts where they are asked for."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        name: str,
        images: Any,
        steps: str,
        sizes: tuple[int, int],
    ) -> None:
        device = self.device = torch.device(
            "cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu"
        )
        self.precision = configs.choose_precision(arguments.precision, device)
        network = (
            model.create(name, images.classes, sizes[1])
            .to(device)
            .to(memory_format=torch.channels_last)
        )
        self.network = network.train()
        self.trained = torch.compile(network) if arguments.compile else network
        self.updater = Updater(
            network, make_optimizer(network), make_schedule(lr=0.001, weight_decay=5e-4, first=0), Ranks()
        )
        self.plan = Plan(
            len(images), arguments.batchSize, 1, True, limit=arguments.batchSize * arguments.steps
        )
        pipeline = Pipeline(augmentation.parse(steps), *sizes, seed=1)
        self.loader = data.make_loader(
            images,
            pipeline,
            self.plan,
            device,
            workers=arguments.nThreads,
            start_method="forkserver",
        )
        self.classes = len(images.classes)
        self.run = SimpleNamespace(
            accumulate=1,
            device=device,
            seed=1,
            ranks=Ranks(),
            progress=SimpleNamespace(step=0),
            autocast=self.autocast,
        )
        self.epoch = 0

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def pass_(self, parts: Parts | None = None) -> list[float]:
        """Train on one pass; return its seconds a step. parts: gets the seconds of each."""
        parts = parts or Parts(None)
        criterion, sums = parts.around(Criterion(), "forward"), Sums(self.device)
        network = parts.around(self.trained, "forward")
        run: Any = self.run
        wait(self.device)
        started = time.perf_counter()
        with parts.inside(self.loader, self.updater):
            for batch in parts.each(self.loader.epoch(self.epoch), "copy"):
                self.updater.begin(0)
                with parts.of("augment"):
                    mix = self.loader.pipeline.mix
                    images, targets = mix(
                        batch.images, batch.labels, self.classes, self.epoch, batch.number
                    )
                with parts.of("forward"):
                    loss, logits = suite.gradients(
                        run, network, self.updater, criterion, images, targets, batch.total
                    )
                with parts.of("update"):
                    counted = self.updater.apply(loss, run.progress.step, batch.indices)
                with parts.of("sums"):
                    sums.add(loss, logits, batch.labels, counted, batch.total)
                run.progress.step += 1
        self.updater.settle()
        sums.result()
        self.epoch += 1
        return [(time.perf_counter() - started) / len(self.plan)]

    def bare(self) -> list[float]:
        """Return the seconds a step of the network alone: one batch, on the device."""
        batch = next(iter(self.loader.epoch(self.epoch)))
        plain = torch.optim.SGD(self.network.parameters(), 0.001, 0.9, fused=True)
        wait(self.device)
        started = time.perf_counter()
        for _ in range(len(self.plan)):
            with self.autocast():
                heads = self.trained(batch.images, heads=True)
            loss = F.cross_entropy(heads[0].float(), batch.labels)
            plain.zero_grad(set_to_none=True)
            loss.backward()
            plain.step()
        wait(self.device)
        return [(time.perf_counter() - started) / len(self.plan)]


class Theirs:
    """The loop of torchvision's references/classification/train.py, with its transforms, on the same network."""

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
            images, arguments.batchSize, shuffle=True, num_workers=arguments.nThreads,
            persistent_workers=arguments.nThreads > 0, pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if arguments.nThreads else None,
        )  # fmt: skip
        self.precision = configs.choose_precision(arguments.precision, self.device)
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


def matmul_rate(device: torch.device, kind: torch.dtype | None) -> float:
    """Return the multiply-adds a second of a large matrix product: what convolutions can hope for."""
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
        default=min(8, len(os.sched_getaffinity(0))),
        help="processes that read",
    )
    parser.add_argument(
        "--peer",
        choices=["torchvision"],
        help="measure the reference recipe's loop in the same run",
    )
    parser.add_argument("--compile", action="store_true", help="compile our network")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--plot", type=Path, help="picture of a step's parts")
    return parser.parse_args(argv)


def main() -> None:
    arguments = arguments_of()
    utils.keep_memory()
    with clear_errors():
        results = {name: measure(arguments, name) for name in arguments.netType}
        timing.write(arguments.json, {"networks": results})
        if arguments.plot:
            plot(results, arguments.plot)
    end_workers()  # the peer's own shutdown can hang beside another pool's


def images_of(arguments: argparse.Namespace) -> tuple[Any, Any, str, tuple[int, int]]:
    """Return our images, the peer's folder, our augmentation, and the sizes."""
    if arguments.dataset == "mnist":
        root = arguments.data_dir or os.path.expanduser("~/.cache/multi-gpu-torch")
        return data.open_images("mnist", arguments.data_dir, "train"), root, "pad:2,crop", (28, 28)
    sizes = (arguments.imageSize, arguments.cropSize)
    if arguments.data_dir:
        return (
            data.open_images("folder", arguments.data_dir, "train"),
            f"{arguments.data_dir}/train",
            arguments.augment,
            sizes,
        )
    count = max(arguments.batchSize * 2, 256)
    return (
        data.open_images("synthetic", None, "train", shape=(count, 1000, arguments.imageSize)),
        None,
        arguments.augment,
        sizes,
    )


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    images, root, steps, sizes = images_of(arguments)
    ours = Ours(arguments, name, images, steps, sizes)
    ways: dict[str, Callable[[], list[float]]] = {"ours": ours.pass_, "bare": ours.bare}
    if arguments.peer and root is not None:
        ways["torchvision"] = Theirs(arguments, name, root, sizes).pass_
    for way in ways.values():  # compiles, fills caches, starts processes
        way()
    figures = {
        way: timing.summary(runs)
        for way, runs in timing.alternate(ways, arguments.repetitions).items()
    }
    measured = Parts(ours.device)
    whole = ours.pass_(measured)[0] * len(ours.plan)
    parts = measured.seconds
    batch = min(arguments.batchSize, ours.plan.image_count)
    limit = matmul_rate(ours.device, ours.precision)
    needed = 3 * model.multiply_adds(ours.network)  # forward, and twice as much backward
    rows = [
        [
            f"{name}, {ours.device.type}, {arguments.precision}",
            "ms a step",
            "images/s",
            "of matmul",
            "ours is",
        ]
    ]
    for way, figure in figures.items():
        seconds = figure["seconds_per_batch"]
        share = needed * batch / seconds / limit
        figure |= {"images_per_second": batch / seconds, "share_of_matmul": share}
        figure["ours_is_faster_by"] = seconds / figures["ours"]["seconds_per_batch"]
        cells = [
            f"{1000 * seconds:.1f}",
            f"{batch / seconds:.0f}",
            f"{share:.0%}",
            f"x {figure['ours_is_faster_by']:.3f}",
        ]
        rows.append([way, *cells])
    print_table(rows)
    print(
        "a step of ours: "
        + ", ".join(
            f"{part} {1000 * value / len(ours.plan):.2f} ms" for part, value in parts.items()
        )
    )
    memory = utils.peak_memory(ours.device)
    print(
        f"waiting for data: {parts['wait'] / whole:.1%} of the time; at most {memory / 2**20:.0f} MiB\n",
        flush=True,
    )
    milliseconds = {part: 1000 * value / len(ours.plan) for part, value in parts.items()}
    return {"figures": figures, "milliseconds": milliseconds, "waiting": parts["wait"] / whole, "peak_memory_bytes": memory,
            "multiply_adds_a_second": limit, "cores": len(os.sched_getaffinity(0))}  # fmt: skip


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
