"""Times of a run, and the settings that are recommended."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinflow.sampling import (
    SamplerSettings,
    few_step_times,
    make_schedule,
    preset,
    published_preset,
    time_grid,
)


@given(
    steps=st.integers(1, 100),
    start=st.floats(0, 0.3),
    end=st.just(0.0) | st.floats(0.01, 0.6),
    time_dist=st.tuples(*[st.floats(0.7, 1.5)] * 3),
)
def test_times_fall_strictly_from_the_start_gap_to_zero(steps, start, end, time_dist):
    times = time_grid(steps, gaps=(start, end), time_dist=time_dist)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert (times.float().diff() < 0).all()
    assert times[0] <= 1
    assert times[-1] == 0


def test_gaps_are_the_first_and_the_last_time():
    assert time_grid(4, gaps=(0.1, 0.3)).tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3, 0])
    assert time_grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert time_grid(1, gaps=(0.0, 0.6)).tolist() == [1, 0]


def test_kumaraswamy_warp():
    u = torch.arange(5, dtype=torch.float64) / 5
    for steps in (2, 3, 4, 5, 30, 999):  # of 1, 1, 1 it is none, to the last bit
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        assert torch.equal(time_grid(steps), 1 - grid)
        ended = torch.linspace(0, 0.4, steps, dtype=torch.float64)
        assert torch.equal(time_grid(steps, gaps=(0.0, 0.6))[:-1], 1 - ended)
    assert torch.equal(time_grid(5, time_dist=(2.0, 1.0, 1.0))[:-1], 1 - u**2)
    torch.testing.assert_close(time_grid(5, time_dist=(1.0, 2.0, 3.0))[:-1], 1 - (1 - (1 - u) ** 2) ** 3)


def test_published_presets():
    def times(nfe, style):
        return list(make_schedule(nfe, published_preset(nfe, style)).times)

    assert times(2, "few") == pytest.approx([0.999, 0.6, 0])
    assert times(4, "few") == pytest.approx([0.999, 0.83267, 0.66633, 0.5, 0], abs=1e-5)
    assert times(4, "any") == pytest.approx(times(4, "few"))
    assert times(30, "multi")[0] > 0.999
    assert (published_preset(2).stochastic, published_preset(4, "any").stochastic) == (1.0, 0.0)
    assert published_preset(30, "multi").time_dist == (1.17, 0.8, 1.1)


def test_end_gaps_are_those_of_the_published_numbers_of_evaluations():
    assert [published_preset(nfe).gaps[1] for nfe in (1, 2, 3, 8)] == [0.6, 0.6, 0.5, 0.5]
    assert [published_preset(nfe, "any").gaps[1] for nfe in (2, 8, 9)] == [0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match="style must be one of few, any, multi, got 'none'"):
        published_preset(2, "none")


@pytest.mark.parametrize(
    "bad",
    [
        {"style": "none"},
        {"time_dist": (1, 1, 0)},
        {"time_dist": (1, 1, True)},
        {"gaps": (0.6, 0.5)},
        {"gaps": (0.5, 0.5)},
        {"gaps": 3},
        {"gaps": (0.0, math.nan)},
        {"stochastic": 1.1},
        {"stochastic": True},
        {"extrapolation": True},
        {"extrapolation": -0.1},
        {"guidance": True},
        {"guidance_interval": (0.5,)},
        {"guidance_interval": (-0.1, 1.0)},
        {"guidance_interval": (0.0, 1.1)},
    ],
    ids=str,
)
def test_settings_that_can_not_be_are_refused_when_they_are_made(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name} must"):
        SamplerSettings(**bad)


def test_settings_at_their_bounds_are_allowed_and_lists_are_tuples():
    SamplerSettings(gaps=(0.0, 0.99), stochastic=1, extrapolation=0, guidance_interval=(0.5, 0.5))
    assert SamplerSettings(gaps=[0, 0.3]) == SamplerSettings(gaps=(0, 0.3))


@pytest.mark.parametrize("style", ["few", "any", "multi"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 8, 30])
def test_presets_start_at_pure_noise(nfe, style):
    times = make_schedule(nfe, preset(nfe, style)).times
    assert times[0] == 1
    assert times[-1] == 0
    assert len(times) == nfe + 1


def test_few_step_times():
    assert few_step_times(1) == [1.0]
    assert few_step_times(2) == torch.tensor([1.0, 0.6]).tolist()  # what the network sees, which is fp32
    assert few_step_times(4) == pytest.approx([1, 5 / 6, 2 / 3, 0.5])


@pytest.mark.parametrize(
    ("nfe", "corrected"), [(1, [0]), (2, [0, 0]), (3, [1, 0]), (4, [0, 1, 0]), (5, [1, 1, 0])]
)
def test_heun_spends_two_velocities_where_it_can(nfe, corrected):
    schedule = make_schedule(nfe, SamplerSettings(order=2))
    assert list(schedule.corrected) == [bool(c) for c in corrected]
    assert schedule.steps + sum(schedule.corrected) == nfe
    guided = make_schedule(2 * nfe, SamplerSettings(order=2, guidance=2.0))
    assert guided == schedule
