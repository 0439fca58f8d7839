"""Networks to compare a method and its oracle on, and what equal means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinflow.objectives.discriminator import FeatureHeads
from twinflow.objectives.time_weight import TimeWeight

from .toys import FeatureToyField, batch, seeded

ROWS = 6


def lively_weight() -> TimeWeight:
    weight = TimeWeight().double()
    with torch.no_grad():
        weight.linear.weight.normal_(std=0.2, generator=seeded(5))
        weight.linear.bias.fill_(0.1)
    return weight


def heads_for(field: FeatureToyField) -> FeatureHeads:
    x, cond, _ = batch(1)
    torch.manual_seed(7)
    return FeatureHeads.of(field.features(x, torch.ones(1, dtype=x.dtype), cond), width=5).double()


def assert_equal(loss: Tensor, expected: Tensor, *networks: Any, value: bool = True) -> None:
    """Equal losses (unless they differ by what has no gradient) and equal gradients of all parameters."""
    if value:
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    parameters = [p for network in networks for p in network.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    assert any(g is not None and g.abs().max() > 1e-9 for g in wanted)
    for one, other in zip(found, wanted, strict=True):
        zero = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(
            zero if one is None else one, zero if other is None else other, rtol=1e-9, atol=1e-12
        )
