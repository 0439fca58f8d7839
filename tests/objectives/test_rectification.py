"""The rectification (eq. 9) on one-dimensional Gaussians, where both velocity fields are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twinflow.objectives import TwinFlow

from .toys import seeded


def coefficient(t: Tensor, std: Tensor | float) -> Tensor:
    """E[z - x | x_t] / x_t for data N(0, std²)."""
    return (t - (1 - t) * std**2) / (t**2 + (1 - t) ** 2 * std**2)


def rectify_gradient(a: float, s: float, *, seed: int, rows: int, clamp: float | None = None) -> float:
    """d L_rectify / d a of the generator x_hat = a z against data N(0, s²)."""
    gain = torch.tensor(a, dtype=torch.float64, requires_grad=True)

    def field(x_t: Tensor, t: Tensor, r: Tensor, cond: None) -> Tensor:
        t, r = t[:, None], r[:, None]
        std = torch.where(t < 0, gain.detach().expand_as(t), torch.full_like(t, s))
        jump = (1 - gain) * x_t  # z - a z
        return torch.where((t == 1) & (r == 0), jump, coefficient(t.abs(), std) * x_t)

    x = torch.zeros(rows, 1, dtype=torch.float64)

    def gradient(kappa: float) -> Tensor:
        objective = TwinFlow(
            roles={"one_step": 1},
            teacher="self",
            loss="l2",
            rectify=kappa,
            rectify_clamp=clamp,
            weighting="none",
        )
        loss = objective.step(field, x, None, generator=seeded(seed)).loss
        return torch.autograd.grad(loss, gain)[0]

    # The same random numbers with and without: what remains is L_rectify's.
    return (gradient(1.0) - gradient(0.0)).item()


def expected_gradient(a: float, s: float) -> float:
    """2 E[Delta_v z] with x' = t' z' + (1 - t') a z: 2 int (c(t, s) - c(t, a)) (1 - t) a dt."""
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    return (2 * (coefficient(t, s) - coefficient(t, a)) * (1 - t) * a).mean().item()


@pytest.mark.parametrize("s", [0.3, 1.0, 1.7])
def test_the_gradient_is_zero_where_the_samples_have_the_datas_distribution(s: float) -> None:
    assert rectify_gradient(s, s, seed=0, rows=1000) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("a", "s"), [(0.5, 1.0), (2.0, 1.0), (0.9, 1.0), (1.1, 1.0), (0.2, 0.4)])
def test_the_gradient_is_the_closed_form_and_pulls_the_variance_to_the_datas(a: float, s: float) -> None:
    samples = torch.tensor([rectify_gradient(a, s, seed=seed, rows=2000) for seed in range(20)])
    mean, error = samples.mean().item(), samples.std().item() / math.sqrt(len(samples))
    assert abs(mean - expected_gradient(a, s)) < 5 * error
    # Descent makes a grow where it is too small, and shrink where it is too large.
    assert mean * (a - s) > 0
    assert abs(mean) > 5 * error


def test_descent_ends_at_the_datas_variance() -> None:
    a, s = 0.3, 1.0
    for step in range(150):
        a -= 0.3 * rectify_gradient(a, s, seed=step, rows=200, clamp=1.0)
    assert a == pytest.approx(s, abs=0.02)  # noise fades with Delta_v, so the end is sharp


def test_it_is_on_for_every_span_of_jumps() -> None:
    """Regression: an exact comparison of the span with 1.0 switched the whole term off."""
    x = torch.randn(4, 3, generator=seeded())

    def field(x_t: Tensor, t: Tensor, r: Tensor, cond: None) -> Tensor:
        return x_t * (t + r).sin()[:, None]

    for span in (1.0, 0.999, 0.5):
        objective = TwinFlow(any_step_span=span, teacher="self", guidance=0.0)
        assert objective.step(field, x, None, generator=seeded()).losses["rectify"] > 0


def test_normalisation_is_the_sources_in_a_batch_with_its_share_of_one_step_rows() -> None:
    """kappa times the mean over the one-step rows, added to the mean over all rows."""
    x = torch.randn(8, 3, generator=seeded())

    def field(x_t: Tensor, t: Tensor, r: Tensor, cond: None) -> Tensor:
        return x_t * (t + r).sin()[:, None]

    def step(kappa: float):
        objective = TwinFlow(rectify=kappa, teacher="self", guidance=0.0)
        return objective.step(field, x, None, generator=seeded())

    off, on = step(0.0), step(0.5)
    assert "rectify" not in off.losses
    torch.testing.assert_close(on.loss, off.loss + 0.5 * on.losses["rectify"])
