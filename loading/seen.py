"""Images as a trained network sees them, batch by batch, in this process."""

from collections.abc import Iterator

from datasets.images import FileImages
from loading.plan import Plan
from loading.workers import Decoded, Reader, Task
from model import Spec
from transforms import Pipeline

BATCH = 32


def batches(spec: Spec, images: FileImages, exif: str | None = None) -> Iterator[Decoded]:
    """Yield what a test reads: pixels (n, 3, S, S) uint8, indices (n,), and the bad images.

    exif: "apply" or "ignore" an orientation; None: as the weights were trained.
    """
    images.turn = (exif or spec.exif) == "apply"
    sizes = spec.image_size, spec.crop_size
    pipeline = Pipeline([], *sizes, interpolation=spec.interpolation, fit=spec.fit)
    plan = Plan(len(images), BATCH)
    reader = Reader(images, pipeline, plan)
    return (reader[Task(0, batch_index)] for batch_index in range(len(plan)))
