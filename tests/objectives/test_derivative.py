"""Derivatives along a direction equal closed forms; TrigFlow and the linear flow are the same paths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinflow.flow import data_estimate, interpolate
from twinflow.objectives.derivative import directional_derivative
from twinflow.objectives.discriminator import FeatureHeads, judge
from twinflow.objectives.time_weight import TimeWeight
from twinflow.objectives.trigflow import linear_state, linear_time, trig_state, trig_time, trig_velocity

from .toys import FeatureToyField, batch, seeded


def wave(x: Tensor, t: Tensor) -> Tensor:
    return x.sin() * t[:, None].exp()


def exact(x: Tensor, t: Tensor, dx: Tensor, dt: Tensor) -> Tensor:
    return (x.cos() * dx + x.sin() * dt[:, None]) * t[:, None].exp()


def points() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = seeded()
    x, dx = (torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t, dt = (torch.rand(5, generator=g, dtype=torch.float64) for _ in range(2))
    return x, t, dx, dt


def derivative(function: Any, mode: Any, delta: Any = 1e-3) -> Tensor:
    x, t, dx, dt = points()
    return directional_derivative(
        function, (x, t), (dx, dt), value=function(x, t).detach(), mode=mode, delta=delta
    )


@pytest.mark.parametrize("mode", ["auto", "forward"])
def test_forward_mode_is_exact(mode: Any) -> None:
    found = derivative(wave, mode)
    torch.testing.assert_close(found, exact(*points()), rtol=1e-13, atol=1e-13)
    assert not found.requires_grad


def test_the_finite_difference_errs_by_order_delta_and_takes_one_a_row() -> None:
    wanted = exact(*points())
    coarse, fine = ((derivative(wave, "finite", d) - wanted).abs().max().item() for d in (1e-3, 1e-4))
    assert coarse / fine == pytest.approx(10, rel=0.05)
    rows = torch.full((5,), 1e-3, dtype=torch.float64)
    assert torch.equal(derivative(wave, "finite", rows), derivative(wave, "finite", 1e-3))


class NoForward(torch.autograd.Function):
    """The sine, with a derivative for backward() alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


def test_auto_falls_back_where_the_network_has_no_forward_derivative() -> None:
    def opaque(x: Tensor, t: Tensor) -> Tensor:
        return NoForward.apply(x) * t[:, None].exp()

    assert torch.equal(derivative(opaque, "auto"), derivative(wave, "finite"))
    with pytest.raises(RuntimeError, match="(?i)setup_context|jvp|functorch"):
        derivative(opaque, "forward")

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return x @ x

    x, t, dx, dt = points()
    with pytest.raises(RuntimeError, match="shapes"):  # an error of another kind is not hidden
        directional_derivative(broken, (x, t), (dx, dt), value=x, mode="auto", delta=0.1)


def test_attention_has_a_forward_derivative() -> None:
    torch.manual_seed(0)
    project = nn.Linear(4, 12).double()

    def attend(x: Tensor, t: Tensor) -> Tensor:
        q, k, v = project(x * t[:, None, None]).reshape(3, 6, 3, 4).transpose(1, 2).unbind(1)
        return nn.functional.scaled_dot_product_attention(q, k, v)

    g = seeded()
    x, dx = (torch.randn(3, 6, 4, generator=g, dtype=torch.float64) for _ in range(2))
    t, dt = (torch.rand(3, generator=g, dtype=torch.float64) for _ in range(2))
    value = attend(x, t).detach()
    forward, finite = (
        directional_derivative(attend, (x, t), (dx, dt), value=value, mode=mode, delta=1e-6)  # type: ignore[arg-type]
        for mode in ("forward", "finite")
    )
    torch.testing.assert_close(forward, finite, rtol=1e-4, atol=1e-5)


def test_trigflow_is_the_linear_flow_on_another_clock() -> None:
    x, _, _ = batch(50)
    g = seeded()
    z = torch.randn(x.shape, generator=g, dtype=x.dtype)
    t = torch.rand(50, generator=g, dtype=x.dtype)
    t[0], t[1] = 0.0, 1.0
    s = trig_time(t)
    assert s[0] == 0
    assert s[1].item() == pytest.approx(math.pi / 2)
    torch.testing.assert_close(linear_time(s), t)
    sin, cos = s.sin()[:, None, None], s.cos()[:, None, None]
    x_t, x_s = interpolate(x, z, t), cos * x + sin * z
    torch.testing.assert_close(trig_state(x_t, t), x_s)
    torch.testing.assert_close(linear_state(x_s, t), x_t)
    torch.testing.assert_close(trig_velocity(z - x, x_t, t), cos * z - sin * x)
    v = torch.randn(x.shape, generator=g, dtype=x.dtype)  # any velocity points to the same data
    torch.testing.assert_close(cos * x_s - sin * trig_velocity(v, x_t, t), data_estimate(x_t, v, t))


def test_the_time_weight_learns_the_logarithm_of_the_loss() -> None:
    torch.manual_seed(0)
    weight = TimeWeight()
    t = torch.linspace(0, 1, 64)
    assert torch.equal(weight(t), torch.zeros(64))
    loss = (1 + 9 * t) / 10
    optimiser = torch.optim.LBFGS(weight.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = (weight(t).exp() * loss - weight(t)).mean()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(weight(t), -loss.log(), rtol=0, atol=0.05)


def test_heads_judge_each_picture_alone_in_any_grouping() -> None:
    x, cond, _ = batch(4)
    field = FeatureToyField(2)
    t = torch.rand(4, generator=seeded(), dtype=x.dtype)
    torch.manual_seed(0)
    heads = FeatureHeads.of(field.features(x[:1], t[:1], cond[:1]), width=6).double()
    real, fake = judge(heads, field, [x, 2 * x], t, cond, dtype=x.dtype)
    assert real.shape == fake.shape == (4, 4)  # two taps of two places
    for i in range(4):
        one = slice(i, i + 1)
        (alone,) = judge(heads, field, [2 * x[one]], t[one], cond[one], dtype=x.dtype)
        torch.testing.assert_close(alone, fake[one])
    with pytest.raises(ValueError, match="shows none"):
        FeatureHeads.of([])
    with pytest.raises(ValueError, match="2 taps, got 1"):
        heads(field.features(x, t, cond)[:1])
