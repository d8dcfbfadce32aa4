"""Numbers that do not depend on who asks for them, and are as random as the tests of randomness can
tell.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from base import randomness
from base.randomness import shuffled, uniforms

ALL = np.arange(20_000)


def test_golden_values_stay() -> None:
    """A seed means the same for ever: a change here changes every published run."""
    assert uniforms(2, 0, np.array([0, 1, 10**12]), 2, "crop").tolist() == GOLDEN
    assert shuffled(np.arange(8), 10, 2, 0).tolist() == GOLDEN_ORDER


GOLDEN = [
    [0.8547279834747314, 0.21343713998794556],
    [0.5725682377815247, 0.5901507139205933],
    [0.11849766969680786, 0.7849988341331482],
]
GOLDEN_ORDER = [1, 9, 5, 3, 7, 8, 6, 0]


def test_uniforms_are_uniform() -> None:
    u = uniforms(2, 3, ALL, 4, "jitter").double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.001
    for column in u.T:
        assert stats.chisquare(np.histogram(column, 64, (0, 1))[0]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2, 0, "a"), (2, 0, "b")),
        ((2, 0, "a"), (2, 1, "a")),
        ((2, 0, "a"), (3, 0, "a")),
    ],
)
def test_streams_epochs_and_seeds_are_independent(one: tuple, other: tuple) -> None:
    a, b = (
        uniforms(seed, epoch, ALL, 1, stream)[:, 0].numpy() for seed, epoch, stream in (one, other)
    )
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_columns_and_neighbours_are_independent() -> None:
    u = uniforms(2, 0, ALL, 3).numpy()
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    st.integers(0, 2**31),
    st.integers(0, 1000),
)
def test_a_number_depends_on_its_image_alone(indices: list[int], seed: int, epoch: int) -> None:
    together = uniforms(seed, epoch, np.array(indices), 3)
    for place, index in enumerate(indices):
        assert (uniforms(seed, epoch, np.array([index]), 3)[0] == together[place]).all()


@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 99))
@settings(max_examples=60)
def test_an_order_is_a_permutation_known_at_any_place(count: int, seed: int, epoch: int) -> None:
    order = shuffled(np.arange(count), count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert shuffled(np.array([count - 1]), count, seed, epoch)[0] == order[-1]


def test_an_order_is_not_the_last_one_nor_the_files_own() -> None:
    first, second = (shuffled(ALL, len(ALL), 2, epoch) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first, ALL)[0, 1]) < 0.03


def test_a_billion_images_take_no_memory() -> None:
    places = np.arange(10**9 - 1000, 10**9)
    images = shuffled(places, 10**9, 2, 0)
    assert len(set(images.tolist())) == 1000
    assert 0 <= images.min() <= images.max() < 10**9


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_few_rounds_bring_every_position_inside(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least a quarter of the domain is inside: half of what is outside is inside soon."""
    feistel, permuted = randomness._feistel, [0]

    def counted(values: np.ndarray, *more: Any) -> np.ndarray:
        permuted[0] += len(values)
        assert permuted[0] < 100 * (count + 10)
        return feistel(values, *more)

    monkeypatch.setattr(randomness, "_feistel", counted)
    order = randomness.shuffled(np.arange(count), count, 3, 5)
    assert sorted(order.tolist()) == list(range(count))
    assert permuted[0] <= 8 * count + 20
