"""Laws of the RCGM residual (eq. 1)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.flow import expand_time
from twinflow.objectives import RCGM, TwinFlow
from twinflow.objectives.placement import Placement, jump_nodes
from twinflow.objectives.queries import Evaluator
from twinflow.objectives.roles import ROLE_NAMES

from .gaussian import gaussian_flow_map
from .toys import Recorder, ToyField, batch, seeded

unit = st.floats(0, 1, width=32)


class At:
    """Rows at given times, as the part of a placement that the jumps read."""

    def __init__(self, t: torch.Tensor, r: torch.Tensor, *, delta: float, order: int) -> None:
        self.jumping = (t - r >= delta).nonzero().flatten()
        s_0 = torch.maximum(t - delta, r)[self.jumping]
        counts = torch.full_like(s_0, order, dtype=torch.int64)
        self.nodes = jump_nodes(start=s_0, end=r[self.jumping], counts=counts, most=order)
        self.moving = [torch.arange(len(s_0))] * order


def residual(field, x_t, t, r, v, *, delta: float, order: int) -> torch.Tensor:
    """Delta of eq. 1, from the implementation's own parts."""
    objective = RCGM(delta=delta, order=order, guidance=0.0, clamp=None)
    ask = Evaluator(cond=None, uncond=None, state_dtype=x_t.dtype)
    F = field(x_t, t, r, None)
    jumps, _ = objective._jumps(x_t - delta * v, F, At(t, r, delta=delta, order=order), field, ask, beside={})
    return F - v + jumps


@settings(max_examples=200)
@given(
    t=unit,
    share=unit,
    order=st.integers(1, 5),
    delta=st.floats(1e-3, 0.5),
    value=st.floats(-100, 100, width=32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_constant_field_has_zero_residual(t, share, order, delta, value, dtype) -> None:
    times, x_t = torch.tensor([t], dtype=dtype), torch.ones(1, 3, dtype=dtype)
    v = torch.full_like(x_t, value)
    out = residual(lambda *_: v, x_t, times, times * share, v, delta=delta, order=order)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("s", [0.3, 0.5, 2.0])
def test_the_gaussian_flow_map_has_a_residual_of_order_delta(order: int, s: float) -> None:
    field, velocity = gaussian_flow_map(s)
    grid = torch.linspace(0.05, 1, 40, dtype=torch.float64)
    t = grid.repeat_interleave(20)
    r = t * torch.linspace(0, 1, 20, dtype=torch.float64).repeat(40)
    x_t = torch.ones(len(t), 1, dtype=torch.float64)

    def worst(delta: float) -> float:
        # Rows with t - r < delta are plain flow matching, whose error O(t - r) is no larger.
        v = velocity(x_t, t[:, None])
        return residual(field, x_t, t, r, v, delta=delta, order=order).abs().max().item()

    coarse, fine = worst(1e-3), worst(1e-4)
    assert coarse < 0.1
    assert fine / coarse == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_wrong_map_has_a_residual_that_does_not_vanish(order: int) -> None:
    field, velocity = gaussian_flow_map(0.5)
    t = torch.linspace(0.5, 1, 20, dtype=torch.float64)
    x_t = torch.ones(20, 1, dtype=torch.float64)
    v = velocity(x_t, t[:, None])

    def wrong(x, t, r, c):
        return field(x, t, r, c) + 0.1 * expand_time(t - r, x)

    for delta in (1e-2, 1e-4):
        assert residual(wrong, x_t, t, 0 * t, v, delta=delta, order=order).abs().min() > 0.05


def test_below_delta_the_residual_is_flow_matching_exactly() -> None:
    field = ToyField()
    x, cond, _ = batch(5)
    t = torch.tensor([0.5, 0.5, 0.2, 0.005, 0.0], dtype=torch.float64)
    r = torch.tensor([0.5, 0.4901, 0.195, 0.0, 0.0], dtype=torch.float64)
    v = torch.randn_like(x)
    asked = Recorder(lambda x, t, r, c: field(x, t, r, cond[: len(x)]))
    out = residual(asked, x, t, r, v, delta=0.01, order=2)
    assert torch.equal(out, field(x, t, r, cond) - v)
    assert len(asked.calls) == 1


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_t_equal_to_r_is_finite_in_every_dtype(out_dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    """Regression: 1 / (t - r) inside a torch.where made NaN gradients of rows at t = r."""
    field = ToyField(1, out_dtype=out_dtype).float()
    x, cond, uncond = batch(8, dtype=x_dtype)
    for time_scale in (1.0, 1e-38):  # at 1e-38, t - u rho t is t, or both are 0
        objective = TwinFlow(teacher="self", tangent_gap=0.0, time={"scale": time_scale})
        step = objective.step(field, x, cond, uncond=uncond, generator=seeded())
        step.loss.backward()
        assert step.loss.dtype == torch.float32
        assert torch.isfinite(step.loss)
        assert all(p.grad.isfinite().all() for p in field.parameters())
        assert step.rows.t.dtype == torch.float32


def test_times_reach_the_field_unrounded_and_states_in_the_datas_dtype() -> None:
    field = Recorder(ToyField(1).float())
    x, cond, uncond = batch(8, dtype=torch.bfloat16)
    TwinFlow(teacher="self").step(field, x, cond, uncond=uncond, generator=seeded())
    for x_t, t, r, _ in field.calls:
        assert (x_t.dtype, t.dtype, r.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_differences_of_outputs_are_taken_in_fp32() -> None:
    """A bf16 network whose outputs differ by one bf16 unit: the residual is that unit over delta, unrounded."""
    unit_bf16 = 2.0**-8

    def field(x_t, t, r, cond):
        v = torch.where(t == 1, 1.0, 1.0 - unit_bf16)
        return v[:, None].expand_as(x_t).to(torch.bfloat16)

    t, r = torch.tensor([1.0]), torch.tensor([0.0])
    x_t = torch.zeros(1, 2)
    objective = RCGM(guidance=0.0, order=1)
    ask = Evaluator(cond=None, uncond=None, state_dtype=torch.bfloat16)
    F = field(x_t, t, r, None).float()
    jumps, _ = objective._jumps(x_t, F, At(t, r, delta=0.01, order=1), field, ask, beside={})
    torch.testing.assert_close(jumps, torch.full_like(jumps, 0.99 * unit_bf16 / 0.01))


@given(st.integers(1, 6), unit, unit)
def test_nodes_go_down_from_start_to_end(order: int, start: float, share: float) -> None:
    a = torch.tensor([start], dtype=torch.float64)
    b = a * share
    for inner in (None, torch.rand(order - 1, 1, dtype=torch.float64)):
        counts = torch.full_like(a, order, dtype=torch.int64)
        nodes = jump_nodes(start=a, end=b, counts=counts, most=order, inner=inner)
        assert nodes.shape == (order + 1, 1)
        assert torch.equal(nodes[0], a)
        assert torch.equal(nodes[-1], b)
        assert (nodes.diff(dim=0) <= 1e-15).all()


def test_roles_are_placed_at_their_times() -> None:
    from twinflow.objectives.draws import Draws
    from twinflow.objectives.times import TimeDistribution

    x, *_ = batch(50)
    roles = torch.arange(5).repeat(10)
    draws = Draws.sample(x, time=TimeDistribution(), inner_nodes=1, generator=seeded())
    rows = Placement.of(roles, draws, settings=TwinFlow(any_step_span=0.5), device=x.device)
    at = {name: (rows.t[roles == i], rows.r[roles == i]) for i, name in enumerate(ROLE_NAMES)}
    assert (at["one_step"][0] == 1).all()
    assert (at["one_step"][1] == 0).all()
    t, r = at["tangent"]
    assert ((r <= t) & (t - r <= 0.05 * t)).all()
    t, r = at["any_step"]
    assert ((r >= 0.5 * t) & (r <= t)).all()
    t, r = at["fake"]
    assert ((t == r) & (t <= 0)).all()
    assert (at["consistency"][1] == 0).all()


def test_the_trained_target_of_a_fake_row_is_its_conditional_velocity() -> None:
    """Eq. 2: a field that returns z - x_fake on negative times has no loss there."""
    x, cond, _ = batch(6)
    objective = TwinFlow(roles={"fake": 1}, loss="l2", teacher="self")
    x_fake = {}

    def field(x_t, t, r, c):
        if (t == 1).all() and (r == 0).all():
            x_fake["data"], z_own = x_t - x_t.sin(), x_t
            return z_own.sin()
        u = t.abs()[:, None, None]
        return (x_t - x_fake["data"]) / u  # z - x, as x_t = u z + (1 - u) x

    assert objective.step(field, x, cond, generator=seeded()).loss < 1e-20
