"""A line of the log is read back as it was written, and nothing else is taken for one."""

import json
import math
from typing import Any

import pytest

from report import record
from report.record import EpochRecord

VALUES: dict[str, Any] = dict.fromkeys(EpochRecord.__dataclass_fields__, 1.5) | {
    "epoch": 2,
    "step": 30,
    "peak_memory_bytes": 10**12,
    "test_map": None,
    "train_left_out": None,
    "test_left_out": 4,
}


def test_a_line_is_read_back() -> None:
    known = EpochRecord(**VALUES)
    line = json.loads(json.dumps(known.to_json()))
    assert EpochRecord.from_json(line) == known
    # A count of bad images only where there are some; what is not known of a test stays null.
    assert "train_left_out" not in line
    assert line["test_map"] is None
    # Names of later versions are passed over; JSON has one kind of number.
    assert EpochRecord.from_json(line | {"later": "x", "lr": 1}).lr == 1
    assert EpochRecord.from_json(line | {"step": 2**63 - 1}).step == 2**63 - 1
    # As logs of before have it.
    assert EpochRecord.from_json(line | {"train_loss": math.inf}).train_loss == math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epoch", 1.5), ("epoch", None), ("epoch", True), ("epoch", "1")),
        *(("step", 2.0), ("lr", None), ("lr", "0.1"), ("lr", [0.1]), ("lr", True)),
        *(("train_loss", "x"), ("test_left_out", 1.5), ("peak_memory_bytes", 0.5)),
        *(("test_top1", 10**400), ("step", -(2**63)), ("lr", 2**63)),
    ],
)
def test_what_is_no_number_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        EpochRecord.from_json(VALUES | {name: value})


@pytest.mark.parametrize("name", ["train_loss", "test_top1", "test_map", "images_per_second"])
def test_what_may_be_unknown_may_be_null(name: str) -> None:
    assert getattr(EpochRecord.from_json(VALUES | {name: None}), name) is None


def test_a_line_that_lacks_a_name_is_none() -> None:
    with pytest.raises(TypeError, match="test_seconds"):
        EpochRecord.from_json({n: value for n, value in VALUES.items() if n != "test_seconds"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_json(value: float) -> None:
    line = EpochRecord(**(VALUES | {"train_loss": value, "test_loss": 0.25})).to_json()
    assert (line["train_loss"], line["test_loss"], line["step"]) == (None, 0.25, 30)
    tested = record.TestMetrics(value, 50.0, 90.0, 1.0, None)
    assert tested.to_json() == {
        "test_loss": None,
        "test_top1": 50.0,
        "test_top5": 90.0,
        "test_seconds": 1.0,
        "test_map": None,
    }
