"""Averages of bf16 weights move as those of fp32 ones do, though nearly every step is smaller than a bf16 number."""

from __future__ import annotations

import torch
from torch import nn

from twinflow.training.ema import ParameterAverage

DECAY, STEPS, COUNT = 0.999, 300, 4096


def network(start: float, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(COUNT, 1, bias=False, dtype=dtype)
    nn.init.constant_(made.weight, start)
    return made


def settled(dtype: torch.dtype) -> tuple[nn.Linear, ParameterAverage]:
    """An average of weights 1 whose decay has warmed up, and weights that jump to 1.5 then."""
    made = network(1.0, dtype)
    average = ParameterAverage(made, decay=DECAY)
    average.current_decay = DECAY
    nn.init.constant_(made.weight, 1.5)
    return made, average


def value(average: ParameterAverage) -> torch.Tensor:
    return next(average.network.parameters()).detach().double()


def test_the_mean_is_that_of_an_exact_average() -> None:
    _, exact = settled(torch.float32)
    _, rounded = settled(torch.bfloat16)
    for _ in range(STEPS):
        exact.update()
        rounded.update()
    # Each rounding errs by at most 2^-7 with mean 0, and is forgotten with the decay: a sum of variances.
    spread = 2**-7 * (1 / (1 - DECAY**2)) ** 0.5 / COUNT**0.5
    assert abs(value(rounded).mean() - value(exact).mean()) < 4 * spread
    assert value(exact).mean() > 1.1
    nearest = torch.ones((), dtype=torch.bfloat16)
    for _ in range(STEPS):
        nearest.lerp_(torch.tensor(1.5, dtype=torch.bfloat16), 1 - DECAY)
    assert nearest == 1  # what rounding to the nearest makes of the same steps


def test_the_first_update_copies_the_weights() -> None:
    made = network(1.0, torch.bfloat16)
    average = ParameterAverage(made, decay=DECAY)
    nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(0))
    average.update()
    assert torch.equal(value(average), made.weight.detach().double())


def test_a_resumed_average_is_the_same_to_the_bit() -> None:
    _, whole = settled(torch.bfloat16)
    for _ in range(10):
        whole.update()
    _, first = settled(torch.bfloat16)
    for _ in range(4):
        first.update()
    tensors, state = first.state_dict()
    _, second = settled(torch.bfloat16)
    second.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, state)
    for _ in range(6):
        second.update()
    assert torch.equal(value(second), value(whole))


def test_fp32_averages_are_what_they_were() -> None:
    made = network(1.0, torch.float32)
    average = ParameterAverage(made, decay=0.9)
    expected, decay = made.weight.detach().clone(), 0.0
    for step in range(5):
        nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(step))
        average.update()
        expected.lerp_(made.weight.detach(), 1 - decay)
        decay += (1 - decay) * (0.9 - decay) / 2
    assert torch.equal(value(average).float(), expected)
