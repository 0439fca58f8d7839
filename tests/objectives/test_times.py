"""The distributions of times, against their closed-form moments and quantiles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from twinflow.objectives import TimeDistribution
from twinflow.objectives.times import log_normal_noise

from .toys import seeded

COUNT = 20_000


def draw(**settings: Any) -> torch.Tensor:
    time = TimeDistribution(**settings)
    return time.sample(COUNT, generator=seeded(), device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (4.0, 1.0), (0.5, 2.0), (2.0, 3.0)])
def test_beta_has_its_mean_and_variance(a: float, b: float) -> None:
    t = draw(kind="beta", a=a, b=b)
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    assert t.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / COUNT))
    assert t.var().item() == pytest.approx(variance, rel=0.05)
    assert ((t >= 0) & (t <= 1)).all()


def test_uniform_logit_normal_shift_and_scale() -> None:
    error = 5 * 0.5 / math.sqrt(COUNT)
    assert draw().mean().item() == pytest.approx(0.5, abs=error)
    # Quantiles go through monotone maps: the median of a logit-normal is the sigmoid of its mean.
    below = (draw(kind="logit_normal", mean=0.7, std=2.0) < torch.sigmoid(torch.tensor(0.7))).double().mean()
    assert below.item() == pytest.approx(0.5, abs=error)
    below = (draw(shift=3.0) < 3 * 0.5 / (1 + 2 * 0.5)).double().mean()
    assert below.item() == pytest.approx(0.5, abs=error)
    assert draw(scale=0.25).max().item() <= 0.25
    assert draw(scale=0.25).mean().item() == pytest.approx(0.125, abs=error)


def test_log_normal_noise_is_arctan_of_noise_over_the_datas_deviation() -> None:
    """The median of N(m, 1.4²) is m: there sigma = e^m, and TrigFlow's time is arctan(sigma / 0.5)."""
    time = log_normal_noise(-1.0, 1.4)
    s = math.atan(math.exp(-1.0) / 0.5)
    assert time.std == 1.4
    assert 1 / (1 + math.exp(-time.mean)) == pytest.approx(math.sin(s) / (math.sin(s) + math.cos(s)))
    assert log_normal_noise(0.3, 1.0, deviation=1.0) == TimeDistribution(
        kind="logit_normal", mean=0.3, std=1.0
    )


def test_the_same_generator_gives_the_same_times() -> None:
    for kind in ("uniform", "beta", "logit_normal"):
        assert torch.equal(draw(kind=kind, a=2.0), draw(kind=kind, a=2.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "normal"}, ["time.kind", "normal", "logit_normal"]),
        ({"a": 0.0}, ["time.a", "0.0", "positive"]),
        ({"std": -1.0}, ["time.std", "-1.0"]),
        ({"shift": 0.0}, ["time.shift"]),
        ({"scale": 1.5}, ["time.scale", "1.5", "(0, 1]"]),
        ({"speed": 1.5}, ["speed", "shift"]),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        TimeDistribution.of(settings)
    assert all(word in str(error.value) for word in words)
