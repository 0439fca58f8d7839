"""Sizes for pictures of any shape, and the order in which batches of one size come."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from twinflow.data.buckets import BucketedOrder, Buckets


@pytest.mark.parametrize(("size", "multiple"), [(512, 64), (1024, 64), (256, 16), (32, 8), (100, 8)])
def test_sizes_are_multiples_of_about_the_same_area(size: int, multiple: int) -> None:
    buckets = Buckets.of_area(size, multiple=multiple)
    assert all(side % multiple == 0 for pair in buckets.sides for side in pair)
    assert all(max(h / w, w / h) <= 2 for h, w in buckets.sides)
    for height, width in buckets.sides:
        assert height * width <= size * size
        # the shorter side could not be one multiple longer
        assert max(height, width) * (min(height, width) + multiple) > size * size or height == width
    assert {(w, h) for h, w in buckets.sides} == set(buckets.sides)
    side = size // multiple * multiple
    assert (side, side) in buckets.sides


def test_the_nearest_bucket_crops_least() -> None:
    buckets, rng = Buckets.of_area(512, multiple=64), np.random.default_rng(0)

    def kept(picture: tuple[int, int], sides: tuple[int, int]) -> float:
        scale = max(sides[0] / picture[0], sides[1] / picture[1])  # until it covers
        return sides[0] * sides[1] / (picture[0] * scale * picture[1] * scale)

    for height, width in rng.integers(100, 3000, (200, 2)).tolist():
        chosen = buckets.sides[buckets.nearest(height, width)]
        best = max(kept((height, width), sides) for sides in buckets.sides)
        assert kept((height, width), chosen) == pytest.approx(best, rel=1e-12)
        difference = abs(math.log(chosen[1] / chosen[0]) - math.log(width / height))
        assert kept((height, width), chosen) == pytest.approx(math.exp(-difference), rel=1e-12)


def test_pictures_of_the_size_of_a_bucket_go_there() -> None:
    buckets = Buckets.of_area(512, multiple=64)
    assert [buckets.nearest(*sides) for sides in buckets.sides] == list(range(len(buckets)))


BUCKETS = [0] * 7 + [1] * 12 + [2] * 1 + [3] * 5


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_every_row_comes_once_an_epoch_and_every_batch_has_one_bucket(batch: int, world_size: int) -> None:
    orders = [
        BucketedOrder(BUCKETS, batch=batch, seed=0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    rows_of: dict[int, list[int]] = {bucket: [] for bucket in range(4)}
    for _ in range(60 // world_size):
        for order in orders:
            places = order.next_places()
            (bucket,) = {BUCKETS[row] for row in places.rows}
            rows_of[bucket] += places.rows
            turns = [len(rows_of[bucket]) - batch + i for i in range(batch)]
            assert places.epochs == [turn // BUCKETS.count(bucket) for turn in turns]
    for bucket, rows in rows_of.items():
        n = BUCKETS.count(bucket)
        for start in range(0, len(rows) - n + 1, n):
            assert len(set(rows[start : start + n])) == n
    # The buckets keep pace: none is a batch behind or ahead of the epoch.
    seen = {bucket: len(rows) / BUCKETS.count(bucket) for bucket, rows in rows_of.items()}
    epoch = orders[0].epoch
    for bucket, epochs in seen.items():
        assert epoch - batch / BUCKETS.count(bucket) <= epochs <= epoch + 1


def test_after_every_epoch_fewer_rows_than_a_batch_are_left_for_the_next() -> None:
    order, used = BucketedOrder(BUCKETS, batch=4, seed=1), Counter[int]()
    for epoch in range(1, 9):
        while order.epoch < epoch:
            used.update(order.next_rows())
        for bucket in range(4):
            rows = [row for row, own in enumerate(BUCKETS) if own == bucket]
            behind = epoch * len(rows) - sum(used[row] for row in rows)
            assert 0 <= behind < 4
            assert all(epoch - math.ceil(4 / len(rows)) <= used[row] <= epoch for row in rows)


@pytest.mark.parametrize("steps", [0, 1, 5, 17])
def test_resume_in_mid_epoch_with_another_number_of_processes(steps: int) -> None:
    order = BucketedOrder(BUCKETS, batch=3, seed=5)
    for _ in range(steps):
        order.next_rows()
    pair = [BucketedOrder(BUCKETS, batch=3, seed=5, rank=rank, world_size=2) for rank in range(2)]
    for other in pair:
        other.load_state_dict(order.state_dict())
    for _ in range(10):
        assert [order.next_places(), order.next_places()] == [other.next_places() for other in pair]


def test_the_order_is_new_in_every_epoch_and_for_every_seed() -> None:
    def epochs(seed: int) -> list[tuple[int, ...]]:
        order = BucketedOrder([0] * 8 + [1] * 8, batch=4, seed=seed)
        return [tuple(row for _ in range(4) for row in order.next_rows()) for _ in range(3)]

    assert epochs(0) == epochs(0)
    assert len({*epochs(0), *epochs(1)}) == 6


def test_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="size >= multiple"):
        Buckets.of_area(32, multiple=64)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        BucketedOrder([], batch=2, seed=0)
