"""Flow matching: the plain formula, and its known minimum."""

from __future__ import annotations

import pytest
import torch

from twinflow.objectives import FlowMatching

from .toys import Recorder, ToyField, batch, seeded


@pytest.mark.parametrize("loss", ["l2", "barron"])
@pytest.mark.parametrize("weighting", ["none", "cosmap"])
def test_equals_the_plain_formula(loss: str, weighting: str) -> None:
    x, cond, _ = batch(5)
    field = Recorder(ToyField())
    step = FlowMatching(loss=loss, weighting=weighting).step(field, x, cond, generator=seeded(3))
    generator = seeded(3)
    t = torch.rand(5, generator=generator, dtype=x.dtype)
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    w = t[:, None, None]
    m = (ToyField()(w * z + (1 - w) * x, t, t, cond) - (z - x)).square().mean((1, 2))
    if loss == "barron":
        m = m * (m / (1e-6 + 1e-8) + 1) ** -0.5 / 1e-3
    if weighting == "cosmap":
        m = m * 2 / (torch.pi * (1 - 2 * t + 2 * t * t))
    torch.testing.assert_close(step.loss, m.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.losses["velocity"], m.mean(), rtol=1e-12, atol=0)
    assert len(field.calls) == 1
    assert torch.equal(field.calls[0][1], field.calls[0][2])
    assert field.calls[0][3] is cond


def test_its_minimum_on_a_point_of_data_is_the_exact_velocity() -> None:
    point = torch.full((64, 2), 3.0, dtype=torch.float64)

    def field(x_t, t, r, cond):
        return (x_t - 3.0) / t[:, None]

    assert FlowMatching().step(field, point, None, generator=seeded()).loss < 1e-20


def test_times_follow_the_settings_and_stay_fp32() -> None:
    x, cond, _ = batch(64, dtype=torch.bfloat16)
    field = Recorder(ToyField().float())
    FlowMatching(time={"kind": "logit_normal", "scale": 0.5}).step(field, x, cond, generator=seeded())
    x_t, t, _, _ = field.calls[0]
    assert (x_t.dtype, t.dtype) == (torch.bfloat16, torch.float32)
    assert t.max() <= 0.5


def test_it_has_no_state_and_names_bad_settings() -> None:
    objective = FlowMatching()
    objective.set_shard(1, 2)
    objective.load_state_dict(objective.state_dict())
    with pytest.raises(ValueError, match="no state"):
        objective.load_state_dict({"rows": 3})
    with pytest.raises(ValueError, match=r"weighting must be 'none' or 'cosmap', got 'tangent'"):
        FlowMatching(weighting="tangent")
    with pytest.raises(ValueError, match=r"loss must be 'l2' or 'barron', got 'huber'"):
        FlowMatching(loss="huber")
