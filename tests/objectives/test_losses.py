"""Closed forms of the distances and weights."""

from __future__ import annotations

import math

import pytest
import torch

from twinflow.objectives.losses import (
    barron,
    clamp,
    cosmap_weight,
    distance,
    l2,
    pseudo_huber,
    rms,
    tangent_weight,
    validate_distance,
)
from twinflow.objectives.randomness import RandomSource


def test_l2_is_the_mean_square_of_each_row() -> None:
    p = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert l2(p, torch.zeros_like(p)).tolist() == [7.5, 1.0]


def test_barron_at_alpha_one_has_the_documented_value() -> None:
    for error in (0.01, 0.1, 1.0, 10.0):
        p = torch.full((1, 5), error, dtype=torch.float64)
        m = error**2
        exact = m * (m / (1e-6 + 1e-8) + 1) ** -0.5 / 1e-3
        value = barron(p, torch.zeros_like(p)).item()
        assert value == pytest.approx(exact, rel=1e-12)
        assert value == pytest.approx(math.sqrt(1.01) * error, rel=6e-3)  # 1.005 sqrt(m)


def test_barron_gives_every_row_a_gradient_of_the_same_size() -> None:
    p = torch.randn(4, 50, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [10.0], [100.0]])
    p.requires_grad_()
    barron(p, torch.zeros_like(p)).sum().backward()
    m = p.detach().square().mean(1, keepdim=True)
    expected = 2 * math.sqrt(1.01) * p.detach() / (50 * m.sqrt())
    torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=0)
    norms = p.grad.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 2 * math.sqrt(1.01 / 50)), rtol=1e-3, atol=0)


def test_barron_gradient_vanishes_with_the_error() -> None:
    p = torch.zeros(1, 3, requires_grad=True)
    barron(p, torch.zeros(1, 3)).sum().backward()
    assert torch.equal(p.grad, torch.zeros(1, 3))


def test_barron_at_alpha_two_is_l2() -> None:
    p = torch.randn(3, 4)
    torch.testing.assert_close(barron(p, 0 * p, alpha=2.0, c=0.1), l2(p, 0 * p) / 0.1)


def test_the_distance_is_of_the_kind_and_has_the_settings_that_are_named() -> None:
    p, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(distance(p, y, "l2", alpha=0.5, c=0.1), l2(p, y))
    m, b = l2(p, y), l2(p, y) / (0.01 + 1e-8)
    expected = m * (b / 1.5 + 1) ** -0.75 / 0.1
    torch.testing.assert_close(distance(p, y, "barron", alpha=0.5, c=0.1), expected, rtol=1e-12, atol=0)


def test_pseudo_huber_is_the_length_of_large_errors_and_half_the_square_of_small_ones() -> None:
    p = torch.zeros(3, 2, 2, dtype=torch.float64)
    p[0] += 100.0
    p[1] += 1e-9
    value = pseudo_huber(p, 0 * p, c=0.1)
    assert value.tolist() == pytest.approx([math.sqrt(200**2 + 0.01) - 0.1, (2e-9) ** 2 / 0.2, 0], rel=1e-9)
    # c grows with the root of the number of entries, 4 here.
    torch.testing.assert_close(pseudo_huber(p, 0 * p, c=None), pseudo_huber(p, 0 * p, c=0.00108))


def test_tangent_weight_goes_from_one_to_four() -> None:
    t = torch.tensor([1.0, 0.7, 0.0, 1.0])
    r = torch.tensor([0.0, 0.7, 0.0, 0.5])
    expected = torch.tensor([1.0, 4.0777, 4.0777, 1 + math.tan(0.5 * math.pi / 2.5)])
    torch.testing.assert_close(tangent_weight(t=t, r=r), expected, rtol=1e-5, atol=0)


def test_cosmap_weight_is_a_density() -> None:
    t = (torch.arange(10_000) + 0.5) / 10_000
    assert cosmap_weight(t).mean().item() == pytest.approx(1, abs=1e-4)


def test_clamp_and_rms() -> None:
    x = torch.tensor([[-3.0, 0.5, 4.0]])
    assert clamp(x, 1.0).tolist() == [[-1.0, 0.5, 1.0]]
    assert clamp(x, None) is x
    assert rms(torch.tensor([3.0, -3.0])).item() == 3.0
    assert rms(torch.empty(0, 2)).item() == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 2.001, "c": 1.0}, "barron_alpha must be at most 2, got 2.001"),
        ({"alpha": 1.0, "c": 0.0}, "barron_c must be positive, got 0.0"),
        ({"alpha": 1.0, "c": float("nan")}, "barron_c must be positive, got nan"),
    ],
)
def test_settings_just_outside_are_refused(settings: dict[str, float], message: str) -> None:
    validate_distance("barron", alpha=2.0, c=1e-9)  # just inside
    with pytest.raises(ValueError, match=message):
        validate_distance("barron", **settings)


def test_times_of_a_range_fill_it_and_stay_inside() -> None:
    drawn = RandomSource(torch.zeros(4000, 1), torch.Generator().manual_seed(0)).uniform(low=0.25, high=0.75)
    assert 0.25 <= drawn.min() < 0.255  # of 4,000 none below 0.255 has a chance of 0.99^4000
    assert 0.745 < drawn.max() <= 0.75
    assert drawn.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 12**0.5 / 4000**0.5)
