"""What a pass and an epoch leave in numbers: lines of log.jsonl, the content of test.json."""

import dataclasses
import math
import reprlib
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]  # what json reads and writes


@dataclass(frozen=True)
class TrainMetrics:
    """Metrics of an epoch's training.

    Losses are means over images, top1 and top5 percent; None: there were no images.

    data_seconds: waiting for batches; compute_seconds: all the rest; train_left_out: bad images,
    None where none was.
    """

    train_loss: float | None
    train_top1: float | None
    train_top5: float | None
    images_per_second: float | None
    data_seconds: float
    compute_seconds: float
    train_left_out: int | None = None


@dataclass(frozen=True)
class TestMetrics:
    """Metrics of a test.

    As TrainMetrics; test_map: mean average precision over the classes, percent.
    """

    test_loss: float | None
    test_top1: float | None
    test_top5: float | None
    test_seconds: float
    test_map: float | None
    test_left_out: int | None = None

    def to_json(self) -> Json:
        return _without_absent(self)


@dataclass(frozen=True)
class EpochRecord:
    """One line of log.jsonl.

    epoch: from 1; step: updates so far; lr: of the epoch's last step; seconds: of the epoch.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float | None
    train_top1: float | None
    train_top5: float | None
    images_per_second: float | None
    data_seconds: float
    compute_seconds: float
    test_loss: float | None
    test_top1: float | None
    test_top5: float | None
    test_seconds: float
    test_map: float | None
    seconds: float
    peak_memory_bytes: int
    train_left_out: int | None = None
    test_left_out: int | None = None

    @classmethod
    def from_json(cls, values: Json) -> "EpochRecord":
        """Read a line of the log.

        Names of later versions are passed over. Raises TypeError where one is missing, ValueError
        where one is no number.
        """
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in kinds}
        for name, value in known.items():
            # JSON has one kind of number: 1 may be a float's.
            allowed = (int,) if "int" in kinds[name] else (int, float)
            is_absent = value is None and "None" in kinds[name]
            # A whole number may be one that no float holds.
            too_large = type(value) is int and abs(value) >= 1 << 63
            if too_large or not (is_absent or type(value) in allowed):
                raise ValueError(f"{name} is {reprlib.repr(value)}")
        return cls(**known)

    def to_json(self) -> Json:
        return _without_absent(self)


def join(trained: TrainMetrics, tested: TestMetrics, **others: Any) -> EpochRecord:
    """Return the record of an epoch. others: the fields that neither pass knows."""
    return EpochRecord(**dataclasses.asdict(trained), **dataclasses.asdict(tested), **others)


def _without_absent(metrics: TestMetrics | EpochRecord) -> Json:
    """Return the values by name; counts of bad images only where there were some."""
    values = dataclasses.asdict(metrics)
    # JSON has no word for what is not finite.
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return {name: v for name, v in values.items() if not (name.endswith("_left_out") and v is None)}
