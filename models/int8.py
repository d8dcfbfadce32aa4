"""ONNX files in 8-bit integers, by onnxruntime's static quantizer: weights by channel, activations
by the range that they have on images.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class _Reader:
    """Hands images to the quantizer, which asks until there are none. batches: (n, 3, S, S)."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def quantise(source: Path, target: Path, batches: Sequence[np.ndarray]) -> None:
    """Write an ONNX file of `source` in 8 bits.

    batches: of images, uint8 (n, 3, S, S), whose activations set the ranges.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    prepared = target.with_name(f"{target.name}.prepared")
    # It advises what is done here already, on the root logger.
    logging.disable(logging.WARNING)
    settings: dict[str, Any] = {"per_channel": True, "quant_format": quantization.QuantFormat.QDQ}
    try:
        shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(str(prepared), str(target), _Reader(batches), **settings)
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink(missing_ok=True)
