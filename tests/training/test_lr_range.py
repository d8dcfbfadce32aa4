"""The learning-rate range test, and what the number of images decides."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import rig
from rig import make_images, on_folder

import main
import opts
from options.settle import settle_by_images
from report import pictures
from training.lr_range import (
    FIRST_RATE,
    LAST_RATE,
    MAX_STEPS,
    MIN_STEPS,
    RangeTest,
    Rising,
    has_diverged,
    smooth,
    steps_in_time,
)


def test_the_rate_rises_by_one_factor_a_step() -> None:
    rates = [Rising(0.1).at(number / 50)[0] for number in range(51)]
    assert rates[0] == pytest.approx(FIRST_RATE)
    assert rates[-1] == pytest.approx(LAST_RATE)
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert max(factors) == pytest.approx(min(factors))
    assert Rising(0.1).at(0.3)[1] == 0.1


def test_the_mean_of_losses_is_adams_without_bias() -> None:
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.9 * 1 + 2) / 1.9)


RATES = [FIRST_RATE * 10 ** (number / 16) for number in range(97)]


def valley(floor: float, lowest: float, rises: float) -> list[float]:
    """Losses that fall from 3 in proportion to the logarithm of the rate, are at `floor` from the
    rate `lowest` on, and rise as they fell from the rate `rises` on.
    """
    slope = (3 - floor) / math.log10(lowest / FIRST_RATE)
    return [
        floor + slope * max(0.0, math.log10(lowest / rate), math.log10(rate / rises))
        for rate in RATES
    ]


@pytest.mark.parametrize(("lowest", "rises"), [(0.1, 0.1), (0.001, 0.1), (0.01, 1.0)])
def test_the_suggestion_is_a_fifth_of_where_the_loss_rises_again(
    lowest: float, rises: float
) -> None:
    losses = valley(1.0, lowest, rises)
    found = RangeTest(RATES, losses).suggestion
    assert found is not None
    # The mean lags behind by some steps, and 16 are a factor of 10.
    assert 0.2 * rises <= found <= 0.2 * rises * 16
    # By the formula: the last rate of the flat part at which it has risen by a tenth of its fall.
    smoothed = smooth(losses)
    fall = np.mean(losses[:9]) - min(smoothed)
    low = [r for r, s in zip(RATES, smoothed, strict=True) if s <= min(smoothed) + 0.1 * fall]
    assert found == pytest.approx(0.2 * low[-1], rel=0.05)


def test_a_flat_bottom_is_not_left_by_chance() -> None:
    """The lowest of all is early, by 0.001, and the loss is as low for two decades more."""
    losses = valley(1.0, 0.001, 0.1)
    early = next(number for number, rate in enumerate(RATES) if rate > 0.002)
    dented = [loss - 0.01 * (number == early) for number, loss in enumerate(losses)]
    assert RangeTest(RATES, dented).suggestion == RangeTest(RATES, losses).suggestion


def test_a_fall_that_is_chance_suggests_nothing() -> None:
    drawn = np.random.default_rng(0)
    nothing = [
        RangeTest(RATES, [*(3 + 0.1 * drawn.standard_normal(97))]).suggestion is None
        for _ in range(200)
    ]
    assert sum(nothing) >= 190
    # The same noise, and a fall of 4 %.
    slow = np.linspace(3, 2.88, 97) + 0.01 * drawn.standard_normal(97)
    assert RangeTest(RATES, [*slow]).suggestion == pytest.approx(0.2 * RATES[-1], rel=0.05)
    assert RangeTest(RATES, [2.0 + number for number in range(97)]).suggestion is None


def test_a_test_that_ends_early_may_say_too_little() -> None:
    # Half of the fewest steps are enough to say something, one less is not.
    falling = [3.0 * 0.5**number for number in range(MIN_STEPS // 2)]
    assert RangeTest(RATES[: len(falling)], falling).suggestion is not None
    assert RangeTest(RATES[: len(falling) - 1], falling[:-1]).suggestion is None


def test_a_loss_that_explodes_ends_the_test() -> None:
    assert has_diverged([1.0, float("nan")])
    assert has_diverged([1.0, float("inf")])
    assert not has_diverged([1.0, 2.0])
    assert has_diverged([1.0] * 20 + [100.0])


def test_the_steps_fit_into_the_time() -> None:
    assert steps_in_time(0.001) == MAX_STEPS
    assert steps_in_time(0.9) == 50
    assert steps_in_time(100) == MIN_STEPS


def test_find_lr_suggests_and_keeps_no_weights(tmp_path: Path) -> None:
    said = rig.finish(rig.options(tmp_path, "--findLR", "--synthetic", "800:4:20"))
    folder = tmp_path / "synthetic" / "tiny-findLR"
    names = {path.name for path in folder.iterdir()}
    assert {"findLR.csv", "findLR.png"} <= names
    assert not any(name.endswith(".pt") for name in names)
    with open(folder / "findLR.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(FIRST_RATE)
    assert f"{len(rates)} steps up to" in said
    assert "give --LR" in said
    assert "findLR.png" in said
    # Nothing was saved that could be resumed.
    assert "resume with" not in said
    # It has a folder of its own, and takes it again; an old picture does not stay beside new steps.
    more = ["--findLR", "--synthetic", "800:4:20", "--logger", "none"]
    said = rig.finish(rig.options(tmp_path, *more))
    assert "findLR.csv" in said
    assert not (folder / "findLR.png").exists()


def test_a_loss_that_is_not_finite_can_be_drawn(tmp_path: Path) -> None:
    pictures.lr_range(RangeTest([1e-5], [float("nan")]), tmp_path / "a.png")
    pictures.lr_range(RangeTest([1e-5, 1e-4], [2.0, float("inf")]), tmp_path / "b.png")
    assert (tmp_path / "a.png").exists()


def test_find_lr_begins_a_run_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for other in ("--continue", "--test"):
        with pytest.raises(SystemExit):
            opts.parse(["--findLR", other, "--retrain", "x.pt"])
        assert "--findLR begins a run of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "batch", "epochs"),
    # 50 steps an epoch where that leaves a batch of 16 to 128; 2,000 steps within 20 to 60 epochs.
    [(20, 16, 60), (800, 16, 40), (1600, 32, 40), (3200, 64, 40), (6400, 128, 40)]
    + [(12800, 128, 20), (1_281_167, 128, 20)],
)
def test_few_images_are_trained_in_small_batches(count: int, batch: int, epochs: int) -> None:
    options = opts.parse(["--dataset", "folder", "--data_dir", "d"])
    assert (options.batchSize, options.nEpochs) == (None, None)
    assert settle_by_images(options, count) == ["batch", "epochs"]
    assert (options.batchSize, options.nEpochs) == (batch, epochs)


def test_what_is_given_is_not_decided() -> None:
    options = opts.parse(["--dataset", "folder", "--batchSize", "100", "--nEpochs", "3"])
    assert settle_by_images(options, 800) == []
    assert (options.batchSize, options.nEpochs) == (100, 3)
    digits = opts.parse(["--dataset", "mnist"])
    assert (digits.batchSize, digits.nEpochs) == (128, 10)


def test_a_run_says_and_writes_down_what_was_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", 48)
    more = ["--expDir", str(tmp_path), "--logger", "none", "--hours", "0"]
    main.main(on_folder(images, *more))
    said = capsys.readouterr().out
    assert (
        "60 epochs of 3 steps, global batch 16 (batch and epochs by the number of images)" in said
    )
    # More images, the same run.
    make_images(images, 96)
    main.main(on_folder(images, *more, "--continue", "--hours", "0.000001"))
    assert "60 epochs of 6 steps, global batch 16;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        (["--dataset", "mnist"], "onecycle"),
        (["--dataset", "folder"], "onecycle"),
        (["--dataset", "ilsvrc2012"], "regime"),
        (["--dataset", "mnist", "--LR", "0.1"], "constant"),
        (["--dataset", "mnist", "--schedule", "regime"], "regime"),
        (["--dataset", "ilsvrc2012", "--LR", "0.1", "--schedule", "step"], "step"),
    ],
)
def test_the_schedule_of_a_new_run(words: list[str], schedule: str) -> None:
    assert opts.parse(words).schedule == schedule
