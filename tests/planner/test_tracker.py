"""Bytes and operations are counted as they come and go."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, scaled_dot_product_attention

from twinflow.planner.timeline import Stretch, Timeline
from twinflow.planner.tracker import Segment, StorageTracker

KIB = 1024


def test_storages_count_once_and_until_the_last_view_is_gone() -> None:
    weight = torch.ones(256)
    tracker = StorageTracker()
    tracker.ignore([weight])
    with tracker:
        a = torch.empty(256)
        view = a.view(16, 16)[2:]
        assert tracker.live == KIB
        b = weight * 2
        weight.view(2, 128)
        assert tracker.live == 2 * KIB
        del a
        assert tracker.live == 2 * KIB
        del view, b
    assert tracker.live == 0
    assert tracker.peak == 2 * KIB


def test_what_autograd_keeps_is_counted() -> None:
    network = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(3)])
    tracker = StorageTracker()
    tracker.ignore(network.parameters())
    with tracker:
        y = network(torch.ones(4, 64))
        assert tracker.live == 4 * KIB  # the input of each layer, and the output
        y.sum().backward()
        del y
        assert tracker.live == 3 * 64 * 64 * 4  # gradients
        network.zero_grad()
    assert tracker.live == 0


@pytest.mark.parametrize("groups", [1, 8])
def test_operations_of_convolutions_know_groups(groups: int) -> None:
    x, w = torch.ones(2, 8, 6, 6, requires_grad=True), torch.ones(8, 8 // groups, 3, 3, requires_grad=True)
    tracker = StorageTracker()
    with tracker:
        y = conv2d(x, w, padding=1, groups=groups)
        forward = sum(s.flops for s in tracker.segments)
        y.sum().backward()
    assert forward == 2 * y.numel() * (8 // groups) * 9
    assert sum(s.flops for s in tracker.segments) == 3 * forward


def test_operations_of_attention_and_products() -> None:
    q = torch.ones(2, 3, 10, 4, requires_grad=True)
    k = torch.ones(2, 3, 20, 4, requires_grad=True)
    tracker = StorageTracker()
    with tracker:
        scaled_dot_product_attention(q, k, k).sum().backward()
    assert sum(s.flops for s in tracker.segments) == 7 * 2 * 2 * 3 * 10 * 20 * 4  # two products, then five
    tracker = StorageTracker()
    with tracker:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert sum(s.flops for s in tracker.segments) == 2 * 3 * 5 * 7


def stretch(change: int, rise: int, *, count: int = 1, gradients: int = 0) -> Stretch:
    return Stretch(segment=Segment("x", change=change, rise=rise), count=count, gradients=gradients)


def test_repeated_stretches_are_those_written_out() -> None:
    written = [stretch(3, 10), *[stretch(2, 5)] * 7, *[stretch(-1, 4)] * 7, stretch(-5, 0)]
    short = [stretch(3, 10), stretch(2, 5, count=7), stretch(-1, 4, count=7), stretch(-5, 0)]
    one, other = Timeline.of(written), Timeline.of(short)
    assert (one.peak, one.live) == (other.peak, other.live) == (21, 5)


def test_sharded_gradients_leave_their_share() -> None:
    parts = [stretch(10, 12), stretch(8 - 2, 9, count=4, gradients=8)]
    assert Timeline.of(parts).live == 10 + 4 * 6
    assert Timeline.of(parts, gradient_share=1 / 4).live == 10 + 4 * (2 - 2)
