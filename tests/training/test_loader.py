"""Laws of the order of the data, and of what is encoded when."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from twinflow.data.buckets import BucketedOrder
from twinflow.data.encoding import ItemEncoder
from twinflow.data.loader import LatentCache, Loader, OnlineExamples, ShuffledOrder
from twinflow.data.rows import EncodedRow, MemoryRows, on_host

from .tiny import Colors, TinyPipeline


@pytest.mark.parametrize(("length", "batch", "world_size"), [(10, 3, 1), (10, 3, 2), (7, 16, 1), (12, 2, 3)])
def test_every_epoch_is_a_permutation_without_gap_or_overlap(
    length: int, batch: int, world_size: int
) -> None:
    orders = [
        ShuffledOrder(length, batch=batch, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    stream: list[int] = []
    while len(stream) < 3 * length:
        for order in orders:
            stream += order.next_rows()
    epochs = [stream[i * length : (i + 1) * length] for i in range(3)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed_alone() -> None:
    first, same, other = (ShuffledOrder(50, batch=20, seed=seed) for seed in (1, 1, 2))
    rows = first.next_rows()
    assert rows == same.next_rows()
    assert rows != other.next_rows()


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_resume_in_mid_epoch(steps: int) -> None:
    order = ShuffledOrder(10, batch=3, seed=0)
    for _ in range(steps):
        order.next_rows()
    resumed = ShuffledOrder(10, batch=3, seed=0)
    resumed.load_state_dict(order.state_dict())
    assert [order.next_rows() for _ in range(8)] == [resumed.next_rows() for _ in range(8)]


def test_a_resume_with_more_processes_goes_on_in_the_same_stream() -> None:
    one = ShuffledOrder(10, batch=4, seed=0)
    one.next_rows()
    two = [ShuffledOrder(10, batch=2, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for order in two:
        order.load_state_dict(one.state_dict())
    assert one.next_rows() == two[0].next_rows() + two[1].next_rows()


def test_batches_are_stacked() -> None:
    batch = next(Loader(Colors(9), ShuffledOrder(9, batch=4, seed=0)))
    assert batch["pixels"].shape == (4, 3, 4, 4)
    assert len(batch["caption"]) == 4


def test_cached_and_online_examples_are_equal() -> None:
    data, pipe, rows = Colors(11), TinyPipeline(), [7, 0, 7, 10]
    done: list[tuple[int, int]] = []
    cache = LatentCache.of(
        data, pipe, unconditional="", batch=4, progress=lambda now, total: done.append((now, total))
    )
    online = OnlineExamples(data, pipe, unconditional="")
    dropped = torch.tensor([False, True, False, False])
    for drop in (None, dropped):
        one, other = cache.batch(rows, drop), online.batch(rows, drop)
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.cond, other.cond)
    assert cache.captions(rows) == online.captions(rows) == ["green", "red", "green", "green"]
    assert done == [(4, 11), (8, 11), (11, 11)]
    assert len(cache.conditions) == 4, "each distinct caption is encoded once, and the unconditional prompt"


class OnGpu:
    """Encodes to where its networks are."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 4, device="cuda")

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), 3, device="cuda")


def test_what_is_kept_in_memory_is_kept_in_that_of_the_host() -> None:
    """A GPU would be full of it before the first step (the tensors have no data here)."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        cache = LatentCache.of(Colors(11), OnGpu(), unconditional="", batch=4)
        assert cache.latents.device.type == cache.conditions.device.type == "cpu"
        assert len(cache.conditions) == 4
        x, cond = torch.zeros(1, 4, device="cuda"), torch.zeros(1, 3, device="cuda")
        row = EncodedRow(x=x, conds=[cond], uncond=cond, captions=("a",), own_uncond=False)
        held = on_host(row, {})
        assert {t.device.type for t in (held.x, held.conds[0], held.uncond)} == {"cpu"}
    rows = MemoryRows.of(Colors(3), ItemEncoder(TinyPipeline(), unconditional=""))
    assert rows.row(0).uncond is rows.row(1).uncond, "what rows share is there once"


def test_an_empty_order_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ShuffledOrder(0, batch=1, seed=0)


def test_an_order_does_not_go_on_with_data_of_another_length():
    """Its place would mean other rows, some of them for the second time in the epoch."""
    buckets = [0, 0, 0, 1, 1, 1]
    for one, other in (
        (ShuffledOrder(6, batch=2, seed=0), ShuffledOrder(7, batch=2, seed=0)),
        (BucketedOrder(buckets, batch=2, seed=0), BucketedOrder([*buckets, 1], batch=2, seed=0)),
    ):
        one.next_rows()
        with pytest.raises(ValueError, match=r"had 6 rows, and now it has 7: put the data back"):
            other.load_state_dict(one.state_dict())
        earlier = {key: value for key, value in one.state_dict().items() if key != "length"}
        other.load_state_dict(earlier)
