"""Which images make up which batch."""

import numpy as np
import pytest

from loading.plan import Plan


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    ("count", "batch", "limit"),
    [(1, 4, None), (10, 4, None), (9, 4, None), (100, 7, 33), (5, 8, 50)],
)
def test_every_image_is_in_one_batch_of_one_rank(
    count: int, batch: int, limit: int | None, world: int
) -> None:
    for shuffle in (False, True):
        plans = [Plan(count, batch, 1, shuffle, limit, rank, world) for rank in range(world)]
        seen = np.concatenate(
            [plan.indices(3, number) for plan in plans for number in range(len(plan))]
        )
        assert (np.concatenate([part for plan in plans for part in plan.epoch(3)]) == seen).all()
        assert len(seen) == len(set(seen.tolist())) == plans[0].image_count
        assert sum(plans[0].size(number) for number in range(len(plans[0]))) == plans[0].image_count
        left_out = min(count, limit or count) - plans[0].image_count
        assert left_out == (shuffle and count > 1 and min(count, limit or count) % batch == 1)


def test_ranks_share_the_batches_of_one_rank() -> None:
    alone = Plan(100, 8, 5, True)
    shares = [Plan(100, 8, 5, True, None, rank, 3) for rank in range(3)]
    for number in range(len(alone)):
        together = np.concatenate([share.indices(1, number) for share in shares])
        assert sorted(together.tolist()) == sorted(alone.indices(1, number).tolist())


def test_limit_takes_of_every_class() -> None:
    labels = np.repeat(np.arange(10), 100)
    plan = Plan(1000, 50, limit=200)
    seen = np.concatenate([plan.indices(0, number) for number in range(len(plan))])
    assert np.bincount(labels[seen], minlength=10).min() >= 8
    again = Plan(1000, 50, 9, True, 200)
    assert {
        *np.concatenate([again.indices(4, number) for number in range(len(again))]).tolist()
    } == {*seen.tolist()}
