"""Learning rates, what decays, and the warm-up of averages."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from twinflow.recipes.sections import Optimizer
from twinflow.training.ema import ParameterAverage, trained_parameters
from twinflow.training.optim import Optimizers, learning_rate

from .tiny import TinyNetwork


def rates(total: int, **settings: Any) -> list[float]:
    return [learning_rate(Optimizer(lr=1.0, **settings), step, total) for step in range(total)]


def test_schedules() -> None:
    assert rates(4) == [1, 1, 1, 1]
    assert rates(5, warmup_steps=2) == [0.5, 1, 1, 1, 1]
    assert rates(4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(6, schedule="linear", warmup_steps=2, final_lr=0.5) == [0.5, 1, 1, 0.875, 0.75, 0.625]
    assert rates(10, schedule="wsd", decay_fraction=0.4, warmup_steps=1) == [1] * 7 + [0.75, 0.5, 0.25]
    half = 0.5**0.5
    assert rates(4, schedule="cosine") == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2])
    ended = rates(4, schedule="cosine", final_lr=0.5)
    assert ended == pytest.approx([1, (3 + half) / 4, 0.75, (3 - half) / 4])
    cosine = rates(8, schedule="cosine")
    assert cosine[0] == 1
    assert cosine[4] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(cosine))
    assert sum(cosine) == pytest.approx(4.5)  # a half-turn's mean is 1/2, and the first step is counted whole


@pytest.mark.parametrize("name", ["adamw", "radam", "muon", "adafactor", "adamw8bit", "adamw4bit"])
def test_only_matrices_decay_and_only_with_a_gradient(name: Any) -> None:
    network = TinyNetwork()
    optimizers = Optimizers(trained_parameters(network), Optimizer(name=name, weight_decay=0.5, lr=1e-3))
    before = copy.deepcopy(network)
    for parameter in network.first.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.begin(lr=0.1)
    optimizers.step()
    assert torch.allclose(network.first.weight, before.first.weight * 0.95)
    assert torch.equal(network.first.bias, before.first.bias)
    for parameter, other in zip(network.last.parameters(), before.last.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_muon_takes_the_matrices_of_blocks_alone() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)] * 1), "out": nn.Linear(4, 2)})
    optimizers = Optimizers(trained_parameters(network), Optimizer(name="muon"))
    muon, adamw = optimizers.all
    assert sum(p.numel() for group in muon.param_groups for p in group["params"]) == 16
    assert sum(p.numel() for group in adamw.param_groups for p in group["params"]) == 4 + 8 + 2


def test_warm_up_of_the_average() -> None:
    average = ParameterAverage(nn.Linear(1, 1), decay=0.99)
    trace = {}
    for update in range(1, 1001):
        average.update()
        trace[update] = average.current_decay
    expected = {1: 0.495, 2: 0.620, 3: 0.690, 10: 0.856, 20: 0.915, 50: 0.959, 100: 0.976, 200: 0.985}
    assert {update: round(trace[update], 3) for update in expected} == pytest.approx(expected, abs=1.1e-3)
    assert round(trace[500], 4) == 0.9891
    assert round(trace[1000], 4) == 0.9899


def test_the_average_is_that_of_the_recursion() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = ParameterAverage(network, decay=0.9)
    decay, expected = 0.0, 0.0
    for value in (5.0, 2.0, -1.0):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update()
        expected = decay * expected + (1 - decay) * value
        decay += (1 - decay) * (0.9 - decay) / 2
        assert average.network.weight.item() == pytest.approx(expected)


def test_an_average_shares_what_is_not_trained_and_keeps_its_buffers() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].weight.requires_grad_(False)
    average = ParameterAverage(network, decay=0.9)
    copied: Any = average.network
    assert copied[0].weight is network[0].weight
    assert copied[0].bias is not network[0].bias
    assert copied[1].running_mean is not network[1].running_mean
    assert not any(p.requires_grad for p in copied.parameters())


def test_swapping_twice_is_nothing() -> None:
    network = nn.Linear(3, 3)
    average = ParameterAverage(network, decay=0.9)
    with torch.no_grad():
        network.weight.zero_()
    averaged = copy.deepcopy(average.network.weight)
    average.swap()
    assert torch.equal(network.weight, averaged)
    average.swap()
    assert not network.weight.any()
    assert torch.equal(average.network.weight, averaged)
