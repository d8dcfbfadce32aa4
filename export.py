"""Trained networks for other programs: `python export.py best.pt --to onnx OUT`, or pt2, or
safetensors.

onnx and pt2 take uint8 images (N, 3, S, S) and give probabilities (N, K), with normalisation inside
and any N; class names, sizes and where they come from stand in their metadata. What was written is
read again and run beside the network itself before it takes its name. safetensors holds the
weights, with the rest as its metadata.
"""

from base import process

if __name__ == "__main__":
    # Before anything else: a signal ends even the imports below in one line.
    process.begin()

import argparse
import contextlib
import importlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from base.arguments import Parser, file_of, path_of

KINDS = ("onnx", "pt2", "safetensors")


def build_parser() -> Parser:
    """Return the command line's parser. Nothing that it needs imports torch."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="export.py", description=__doc__, formatter_class=plain)
    about = "weights (best.pt, model_5.pt) or a checkpoint"
    parser.add_argument("file", type=path_of, help=about)
    parser.add_argument("--to", choices=KINDS, required=True, help="format")
    parser.add_argument("out", type=file_of, help="file to write")
    about = (
        "fit a temperature to labelled images that were not trained on, and put it into the file: "
        "a folder of class folders or parts, a table, shards or Parquet files"
    )
    parser.add_argument("--calibrate", type=path_of, metavar="IMAGES", help=about)
    about = (
        "onnx in 8-bit integers: half of these labelled images, at most 256, set the ranges, the "
        "others say what it costs in accuracy"
    )
    parser.add_argument("--int8", type=path_of, metavar="IMAGES", help=about)
    return parser


if __name__ == "__main__":
    # --help and wrong options answer here, before torch is imported.
    build_parser().parse_args()

import numpy as np
import torch
from torch import Tensor, nn

import model
from base.errors import Failed, Refused, clear_errors
from base.files import is_special, refuse_target, replacing
from datasets import given
from datasets.images import FileImages, Limits
from loading import seen
from models import temperature, weights
from training.metrics import calibration

# Largest difference of a probability between the file and the network.
CLOSE = 1e-4
# Images that set the ranges of 8-bit integers, at most.
RANGED = 256
# Images that are tried.
BATCHES = (1, 3)


class Probabilities(nn.Module):
    """What is exported: uint8 images (N, 3, S, S) -> probabilities (N, K) float32.

    temperature: what logits are divided by.
    """

    def __init__(self, network: model.Network, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images).float()
        # A graph without one has no division.
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)


def metadata(network: model.Network, source: str) -> dict[str, str]:
    """Return all that a reader needs to know, as text by name; what is no text is JSON."""
    spec = network.spec.to_plain()
    known = {
        "classes": json.dumps(spec.pop("classes")),
        "titles": json.dumps(spec.pop("titles")),
        "source": source,
        "input": "uint8 RGB (N, 3, cropSize, cropSize)",
    }
    known |= {name: str(value) for name, value in spec.items()}
    value = weights.read(source)
    record = value.get("record")
    try:
        known["record"] = json.dumps(record or {})
    except (TypeError, ValueError, RuntimeError):
        raise Refused(f"{source}: its record is no plain data") from None
    return known | {"torch": str(torch.__version__), "program": "multi-gpu-torch"}


def to_onnx(
    outputs: Probabilities, about: dict[str, str], path: Path
) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file; return a function that runs it in onnxruntime."""
    _needed("onnxruntime")
    onnx = _needed("onnx")
    _needed("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        outputs,
        (_examples(outputs.network, 2),),
        dynamo=True,
        dynamic_shapes=_any_count(),
        verbose=False,
        input_names=["images"],
        output_names=["probabilities"],
    )
    assert program is not None
    written = program.model_proto
    onnx.helper.set_model_props(written, about)
    onnx.save_model(written, str(path))
    return _runner(path)


def _runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file."""
    onnxruntime = _needed("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def to_pt2(outputs: Probabilities, about: dict[str, str], path: Path) -> Callable[[Tensor], Tensor]:
    """Write what torch.export.load reads; return a function that runs it."""
    program = torch.export.export(
        outputs, (_examples(outputs.network, 2),), dynamic_shapes=_any_count()
    )
    # Open files: torch doubts a path that does not end in .pt2, as a temporary one does not.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(about)})
    # Not by torch itself, which aborts the process where the disk is full.
    path.write_bytes(buffer.getbuffer())
    with path.open("rb") as file:
        return torch.export.load(file).module()


def to_safetensors(
    outputs: Probabilities, about: dict[str, str], path: Path
) -> Callable[[Tensor], Tensor]:
    """Write the weights; return a function that runs the network with them."""
    _needed("safetensors")
    from safetensors.torch import load_file, save_file

    network = outputs.network
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, str(path), about
    )
    network.load_state_dict(load_file(str(path)))
    return outputs


FORMATS = {"onnx": to_onnx, "pt2": to_pt2, "safetensors": to_safetensors}


def _needed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Refused(f"{name} is not installed: pip install -e '.[export]'") from None


def _any_count() -> dict[str, dict[int, object]]:
    return {"images": {0: torch.export.Dim("count", min=1)}}


def _examples(network: model.Network, count: int) -> Tensor:
    """Return random images, (count, 3, S, S) uint8, the same at each call."""
    size = network.spec.crop_size
    return torch.randint(
        0,
        256,
        (count, 3, size, size),
        generator=torch.Generator().manual_seed(1),
        dtype=torch.uint8,
    )


@torch.inference_mode()
def check(outputs: Probabilities, run: Callable[[Tensor], Tensor], path: Path) -> float:
    """Return the largest difference of a probability between the file and the network.

    Raises Failed above 1e-4.
    """
    worst = 0.0
    for count in BATCHES:
        images = _examples(outputs.network, count)
        apart = (run(images) - outputs(images)).abs().max().item()
        # NaN is larger than nothing: max would drop it.
        worst = apart if not apart <= worst else worst
    if not worst <= CLOSE:
        raise Failed(
            f"{path} gives probabilities that differ by {worst:.2g}, more than {CLOSE:g}: it was "
            "not kept"
        )

    return worst


def export(
    source: str, kind: str, out: Path, calibrate: str | None = None, int8: str | None = None
) -> float:
    """Write `source` as `kind` to `out`, checked; return the largest difference.

    calibrate: labelled images that a temperature is fitted to; int8: those that 8-bit integers are
    fitted to and tried on, before which the difference is. Raises Refused, Failed.
    """
    refuse_target(out, source)
    for images in (calibrate, int8):
        if images is not None:
            given.refuse_written_over([str(out)], images)
    # By its name: weights and .pt2 files begin alike, .onnx files anyhow.
    if out.is_file() and out.suffix != f".{kind}":
        raise Refused(f"{out} is there and no .{kind} file by its name: name another to write")
    if is_special(out):
        raise Refused(f"{out} is no regular file: what is written there could not be checked")
    with _room(out):
        return _export(source, kind, out, calibrate, int8)


@contextlib.contextmanager
def _room(out: Path) -> Iterator[None]:
    """Turn a disk that cannot take the file into one line: each library has its own error."""
    try:
        yield
    except OSError as error:
        raise Failed(f"cannot write {out}: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise Failed(f"cannot write {out}: {error}") from None


def _export(source: str, kind: str, out: Path, calibrate: str | None, int8: str | None) -> float:
    network = model.load(source)
    about = metadata(network, source)
    outputs = Probabilities(network)
    if calibrate is not None:
        outputs.temperature = _temperature(network, calibrate, out)
        about["temperature"] = repr(outputs.temperature)
    # Run beside the network before it takes its name: a wrong file is never left.
    with replacing(out) as temporary, warnings.catch_warnings():
        # torch's own, about its insides.
        warnings.simplefilter("ignore")
        run = FORMATS[kind](outputs, about, temporary)
        worst = check(outputs, run, out)
        if int8 is not None:
            _to_int8(network, int8, temporary, out, run)
        return worst


def _to_int8(
    network: model.Network, source: str, path: Path, out: Path, run: Callable[[Tensor], Tensor]
) -> None:
    """Replace an ONNX file by one in 8-bit integers, and say what both get right.

    source: labelled images; path: of the file; out: what it will be called; run: runs it as it is.
    Raises Refused.
    """
    from models.int8 import quantise

    images = given.labelled(source, list(network.spec.classes), Limits())
    given.refuse_among([str(out)], images)
    if len(images) < 2:
        raise Refused(
            f"{source} has {len(images)} image: --int8 needs some for ranges, some to try"
        )
    # Every other one, or fewer, so that all classes have some.
    ranged = np.arange(0, len(images), max(2, -(-len(images) // RANGED)))
    others = np.setdiff1d(np.arange(len(images)), ranged)
    batches = [pixels.numpy() for pixels, _ in _labelled(network, images.chosen(ranged))]
    # Elsewhere: nothing is left beside the file where this is killed.
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "int8.onnx")
        quantise(path, small, batches)
        run8 = _runner(small)
        hits = [0, 0]
        for pixels, labels in _labelled(network, images.chosen(others)):
            for number, answer in enumerate((run, run8)):
                hits[number] += int((answer(pixels).argmax(1) == labels).sum())
        path.write_bytes(small.read_bytes())
    before, after = (f"{100 * right / len(others):.2f} %" for right in hits)
    print(
        f"8-bit integers, ranges of {len(ranged)} images: top-1 of the {len(others)} others "
        f"{before} -> {after}"
    )


def _labelled(network: model.Network, images: FileImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what the network sees, (n, 3, S, S) uint8, and the labels, (n,). Raises Refused."""
    for pixels, indices, bad in seen.batches(network.spec, images):
        if bad:
            raise Refused(f"{bad[0].path}: {bad[0].reason}: mend or remove it")
        yield pixels, torch.from_numpy(images.labels)[indices]


@torch.inference_mode()
def _temperature(network: model.Network, source: str, out: Path) -> float:
    """Return the temperature of labelled images, and say what it changes.

    Raises Refused, also where they decide none, or out is one of them.
    """
    images = given.labelled(source, list(network.spec.classes), Limits())
    given.refuse_among([str(out)], images)
    parts = [(network(pixels).float(), labels) for pixels, labels in _labelled(network, images)]
    scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    found = temperature.fit(scores, labels)
    if found is None:
        count = f"{len(labels)} images, all right or by chance"
        raise Refused(f"{source} decides no temperature ({count}): give more")
    told = []
    for divisor in (1.0, found):
        probabilities = temperature.scaled(scores, divisor)
        error, _ = calibration(probabilities, labels)
        loss = torch.nn.functional.cross_entropy(scores / divisor, labels).item()
        told.append(f"{100 * error:.1f} %, loss {loss:.4f}")
    print(
        f"temperature {found:.3f} of {len(labels)} images: calibration error {told[0]} -> {told[1]}"
    )
    return found


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.calibrate and arguments.to == "safetensors":
        parser.error("--calibrate belongs into a graph: give --to onnx or pt2")
    if arguments.int8 and arguments.to != "onnx":
        parser.error("--int8 is of ONNX files: give --to onnx")
    with clear_errors():
        given_files = arguments.file, arguments.to, arguments.out
        worst = export(*given_files, arguments.calibrate, arguments.int8)
        size = arguments.out.stat().st_size / 1e6
        before = " before" if arguments.int8 else ""
        print(
            f"{arguments.out}: {arguments.to}, {size:.1f} MB, probabilities differ by {worst:.1g} "
            f"at most{before}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
