"""Reading ahead changes when an item is read, and nothing else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from twinflow.data.buckets import BucketedOrder
from twinflow.data.loader import OnlineExamples, ShuffledOrder, coming_rows
from twinflow.data.read_ahead import ReadAhead


class Pictures:
    """Item i is filled with i; item 5 is broken. Keeps who read what."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, str]] = []
        self.done = threading.Semaphore(0)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.reads.append((row, threading.current_thread().name))
        self.done.release()
        if row == 5:
            raise OSError("picture 5 is broken")
        return {"pixels": torch.full((3, 2, 2), float(row)), "caption": str(row)}


class Plain:
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.clone()

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(prompt or -1)] for prompt in prompts])


def test_what_is_expected_is_read_before_it_is_asked_for_and_once():
    pictures = Pictures()
    ahead = ReadAhead(pictures)
    ahead.expect([3, 1])
    for _ in range(2):
        assert pictures.done.acquire(timeout=30)
    assert [row for row, _ in pictures.reads] == [3, 1]
    assert [item["caption"] for item in ahead.items([1, 3, 2, 1])] == ["1", "3", "2", "1"]
    assert [row for row, _ in pictures.reads] == [3, 1, 2, 1]
    assert {name.rsplit("_", 1)[0] for _, name in pictures.reads} == {"read-ahead"}


def test_an_error_is_raised_where_the_item_is_asked_for():
    ahead = ReadAhead(Pictures())
    ahead.expect([5, 4])
    assert ahead.items([4])[0]["caption"] == "4"
    ahead.expect([5])
    with pytest.raises(OSError, match="picture 5"):
        ahead.items([5])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("bucketed", [False, True])
def test_looking_ahead_leaves_an_order_where_it_is(bucketed, rank):
    """Over several epochs, and also where it is looked at several times or the run goes on from the place."""

    def order() -> Any:
        settings = {"batch": 3, "seed": 4, "rank": rank, "world_size": 2}
        buckets = [0, 1, 0, 1, 1, 0, 0, 0, 1, 0]
        return BucketedOrder(buckets, **settings) if bucketed else ShuffledOrder(10, **settings)

    straight, looked = order(), order()
    for _ in range(20):
        place = looked.state_dict()
        coming = coming_rows(looked)
        assert coming_rows(looked) == coming
        assert looked.state_dict() == place
        resumed = order()
        resumed.load_state_dict(place)
        expected = straight.next_places()
        assert expected.rows == coming
        assert looked.next_places() == expected == resumed.next_places()


def test_batches_are_the_same():
    plain, order = OnlineExamples(Pictures(), Plain(), unconditional=""), ShuffledOrder(5, batch=2, seed=0)
    ahead, again = OnlineExamples(Pictures(), Plain(), unconditional=""), ShuffledOrder(5, batch=2, seed=0)
    for _ in range(6):
        places = order.next_places()
        expected = plain.batch(places.rows, epochs=places.epochs)
        places = again.next_places()
        batch = ahead.batch(places.rows, epochs=places.epochs)
        ahead.expect(again)
        assert torch.equal(batch.x, expected.x)
        assert torch.equal(batch.cond, expected.cond)
