"""Laws of the sampler: what it must return for fields that have a known answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinflow.sampling import SamplerSettings, preset, sample, sample_trajectory, seeded_noise

from .fields import (
    DATA_STD,
    Recorder,
    gaussian_map,
    gaussian_std,
    gaussian_velocity,
    smooth,
)

STYLES = ("few", "any", "multi")
UNIFORM = {"gaps": (0.0, 0.0), "time_dist": (1.0, 1.0, 1.0), "stochastic": 0.0}
F64 = torch.float64


def noise64(*shape: int) -> torch.Tensor:
    return seeded_noise(shape[1:], range(shape[0]), dtype=F64)


@given(
    nfe=st.integers(1, 9),
    style=st.sampled_from(STYLES),
    order=st.sampled_from((1, 2)),
    gaps=st.tuples(st.floats(0, 0.4), st.floats(0.05, 0.5)),
    extrapolation=st.sampled_from((0.0, 0.4)),
)
def test_constant_field_is_exact(nfe, style, order, gaps, extrapolation):
    # From t_0 the data is at x - t_0 v, whatever the steps are.
    noise, v = noise64(2, 3), torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=F64)
    options = UNIFORM | {"order": order, "gaps": gaps, "extrapolation": extrapolation}
    result = sample(lambda *_: v, noise, None, nfe=nfe, style=style, **options)
    start = torch.tensor(1 - gaps[0]).item()  # times are numbers of fp32
    torch.testing.assert_close(result, noise - start * v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
def test_any_follows_an_exact_flow_map_exactly(nfe, order):
    noise = noise64(4, 5)
    run = sample_trajectory(gaussian_map, noise, None, nfe=nfe, style="any", order=order)
    for t, state in zip(run.times, run.states, strict=True):
        std = gaussian_std(torch.tensor(t, dtype=F64))
        torch.testing.assert_close(state, noise * std, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run.sample, noise * DATA_STD, rtol=1e-12, atol=1e-12)


def test_any_and_multi_without_fresh_noise_step_along_the_velocity():
    noise = seeded_noise((7,), [0, 1])
    for style, target in (("any", 1), ("multi", 0)):
        recorder = Recorder(smooth)
        run = sample_trajectory(recorder, noise, None, nfe=5, style=style)
        times = (*run.times, 0.0)
        x = noise
        for i, state in enumerate(run.states):
            assert torch.equal(state, x)
            r = torch.full((2,), times[i + target], dtype=F64).float()
            x = x - (times[i] - times[i + 1]) * smooth(x, torch.full((2,), times[i]), r, None)
        torch.testing.assert_close(run.sample, x, rtol=1e-6, atol=1e-6)


def test_few_with_fresh_noise_is_consistency_sampling():
    # s = 1 forgets the state: what is left of the first noise is in the data estimate alone.

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    noise = seeded_noise((6,), [3])
    run = sample_trajectory(smooth, noise, None, nfe=2, generator=seeded(5))
    eps = torch.randn((1, 6), generator=seeded(5))
    torch.testing.assert_close(run.states[1], 0.4 * run.x_hats[0] + 0.6 * eps)
    assert torch.equal(sample(smooth, noise, None, nfe=2, generator=seeded(5)), run.sample)
    assert not torch.equal(sample(smooth, noise, None, nfe=2), run.sample)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("order", "parity"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_order_of_convergence(style, order, parity):
    # A field without r is an ODE for every style: x(0) = data_std x(1).
    noise = noise64(1, 1)

    def error(nfe: int) -> float:
        result = sample(gaussian_velocity, noise, None, nfe=nfe, style=style, order=order, **UNIFORM)
        return (result - DATA_STD * noise).abs().max().item()

    coarse, fine = error(100 + parity), error(200 + parity)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("style", STYLES)
def test_order_two_beats_order_one_at_equal_cost(style):
    noise = noise64(1, 1)
    errors = [
        (
            sample(gaussian_velocity, noise, None, nfe=20, style=style, order=order, **UNIFORM)
            - DATA_STD * noise
        )
        .abs()
        .item()
        for order in (1, 2)
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    ("field", "nfe", "style", "stochastic"),
    [
        (gaussian_map, 1, "few", 0.0),
        (gaussian_map, 2, "few", 1.0),
        (gaussian_map, 4, "few", 1.0),
        (gaussian_map, 4, "any", 0.0),
        (gaussian_velocity, 200, "multi", 0.0),
        (gaussian_velocity, 400, "multi", "sde"),
    ],
)
def test_gaussian_data_gets_its_variance(field, nfe, style, stochastic):
    noise = seeded_noise((40_000,), [0])
    result = sample(field, noise, None, nfe=nfe, style=style, stochastic=stochastic)
    # Three standard errors of a standard deviation, and two per mille for the step length.
    tolerance = 3 / math.sqrt(2 * noise.numel()) + 0.002
    assert result.std().item() / DATA_STD == pytest.approx(1, abs=tolerance + (0.01 if nfe == 400 else 0))
    assert result.mean().item() == pytest.approx(0, abs=4 * DATA_STD / math.sqrt(noise.numel()))


@given(nfe=st.integers(1, 30), style=st.sampled_from(STYLES), order=st.sampled_from((1, 2)))
def test_nfe_is_what_is_spent(nfe, style, order):
    recorder = Recorder(smooth)
    run = sample_trajectory(recorder, seeded_noise((2,), [0]), None, nfe=nfe, style=style, order=order)
    assert len(recorder.calls) == run.nfe == nfe


def test_guidance_spends_two_evaluations_a_step():
    recorder = Recorder(lambda x, t, r, cond: x * cond[:, None])
    cond, uncond = torch.tensor([2.0, 3.0]), torch.tensor([1.0])
    noise = seeded_noise((2,), [0, 1])
    run = sample_trajectory(recorder, noise, cond, nfe=100, style="multi", uncond=uncond, guidance=4.0)
    assert len(recorder.calls) == len(run.states) == 50
    assert sum(len(call[0]) for call in recorder.calls) == 100 * len(noise)
    assert run.nfe == 100


def test_guidance_interval_acts_on_its_times_only():
    recorder = Recorder(lambda x, t, r, cond: x * cond[:, None])
    options = {"uncond": torch.tensor([1.0]), "guidance": 4.0, "guidance_interval": (0.3, 0.8)}
    noise = seeded_noise((2,), [0])
    run = sample_trajectory(
        recorder, noise, torch.tensor([2.0]), nfe=20, style="multi", gaps=(0, 0), **options
    )
    for x_t, t, _, _ in recorder.calls:
        assert len(x_t) == (2 if 0.3 <= t[0] <= 0.8 else 1)
    assert run.nfe == sum(len(call[0]) for call in recorder.calls) < 20


def test_guidance_acts_at_the_ends_of_its_interval():
    """Regression: .8 is above .8 once it is a number of fp32."""
    recorder = Recorder(lambda x, t, r, cond: x * cond[:, None])
    options = {"uncond": torch.tensor([1.0]), "guidance": 4.0, "guidance_interval": (0.3, 0.8)} | UNIFORM
    sample(recorder, seeded_noise((2,), [0]), torch.tensor([2.0]), nfe=20, style="multi", **options)
    guided = [round(call[1][0].item(), 6) for call in recorder.calls if len(call[0]) == 2]
    assert guided == [0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


def test_guidance_of_one_is_off_and_of_zero_is_unconditional():
    def field(x, t, r, cond):
        return x * cond[:, None]

    noise, cond, uncond = seeded_noise((2,), [0]), torch.tensor([2.0]), torch.tensor([0.5])
    options = {"style": "multi", "gaps": (0, 0)}
    off = sample(field, noise, cond, nfe=4, uncond=uncond, guidance=1.0, **options)
    assert torch.equal(off, sample(field, noise, cond, nfe=4, **options))
    zero = sample(field, noise, cond, nfe=8, uncond=uncond, guidance=0.0, **options)
    torch.testing.assert_close(zero, sample(field, noise, uncond, nfe=4, **options))


@pytest.mark.parametrize("style", ["few", "any"])
def test_one_evaluation_is_the_jump_from_one_to_zero(style):
    recorder = Recorder(smooth)
    noise = seeded_noise((4,), [0, 1])
    result = sample(recorder, noise, None, nfe=1, style=style)
    assert (recorder.t, recorder.r) == ([1.0], [0.0])
    assert torch.equal(result, noise - smooth(noise, torch.ones(2), torch.zeros(2), None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    recorder = Recorder(smooth)
    noise = seeded_noise((4,), [0, 1], dtype=dtype)
    run = sample_trajectory(recorder, noise, None, nfe=4)
    time_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for x_t, t, r, _ in recorder.calls:
        assert (x_t.dtype, t.dtype, r.dtype) == (dtype, time_dtype, time_dtype)
        assert t.shape == r.shape == (2,)
    assert all(state.dtype == time_dtype for state in run.states)
    assert sample(smooth, noise, None, nfe=4).dtype == dtype
    # What a network of few bits answers is not multiplied in few bits.
    x, t = run.states[1], run.times[1]
    v = smooth(x.to(dtype), torch.full((2,), t), torch.zeros(2), None)
    assert v.dtype == dtype
    assert torch.equal(run.x_hats[1], x - t * v.to(time_dtype))


def test_a_batch_without_rows_is_one():
    assert sample(smooth, seeded_noise((4,), []), None, nfe=2).shape == (0, 4)


def test_no_gradient_is_kept_and_the_noise_is_not_changed():
    weight = torch.ones((), requires_grad=True)
    noise = seeded_noise((4,), [0])
    before = noise.clone()
    assert not sample(lambda x, t, r, c: x * weight, noise, None, nfe=3).requires_grad
    assert torch.equal(noise, before)


def test_conditions_reach_the_field_as_they_are():
    recorder = Recorder(smooth)
    cond = {"anything": object()}
    sample(recorder, seeded_noise((2,), [0]), cond, nfe=2)
    assert all(call[3] is cond for call in recorder.calls)


def test_settings_and_overrides():
    noise = seeded_noise((4,), [0])
    chosen = SamplerSettings(style="any", gaps=(0.0, 0.3), order=2)
    a = sample(smooth, noise, None, nfe=3, settings=chosen)
    b = sample(smooth, noise, None, nfe=3, style="any", gaps=[0.0, 0.3], order=2)
    assert torch.equal(a, b)
    assert not torch.equal(a, sample(smooth, noise, None, nfe=3, settings=chosen, order=1))
    assert torch.equal(
        sample(smooth, noise, None, nfe=4), sample(smooth, noise, None, nfe=4, settings=preset(4))
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nfe": 0}, ValueError, ["nfe", "0", "at least 1"]),
        ({"nfe": 1.5}, ValueError, ["nfe", "1.5"]),
        ({"style": "none"}, ValueError, ["style", "'none'", "few, any, multi"]),
        ({"order": 3}, ValueError, ["order", "3", "1 (Euler)"]),
        ({"stochastic": 1.5}, ValueError, ["stochastic", "1.5", '"sde"']),
        ({"stochastic": "SDE"}, ValueError, ["stochastic", "'SDE'", '"sde"']),
        ({"stochastic": None}, ValueError, ["stochastic", "None"]),
        ({"gaps": (0.5, 0.5)}, ValueError, ["gaps", "(0.5, 0.5)"]),
        ({"gaps": (0.5,)}, ValueError, ["gaps", "(0.5,)"]),
        ({"time_dist": (1, 0, 1)}, ValueError, ["time_dist", "(1, 0, 1)"]),
        ({"extrapolation": -1}, ValueError, ["extrapolation", "-1"]),
        ({"guidance": float("nan")}, ValueError, ["guidance", "nan"]),
        ({"guidance_interval": (0.9, 0.1)}, ValueError, ["guidance_interval", "(0.9, 0.1)", "swap"]),
        ({"guidance": 3.0}, ValueError, ["guidance", "3.0", "uncond"]),
        ({"guidance": 3.0, "uncond": torch.ones(1), "nfe": 3}, ValueError, ["even", "3", "4"]),
        ({"guidance": 3.0, "uncond": torch.ones(3)}, ValueError, ["uncond", "3", "(2)"]),
        ({"generator": [torch.Generator()]}, ValueError, ["generator", "2 rows", "1"]),
        ({"noise": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, ["noise", "int64"]),
        ({"noise": torch.zeros(2)}, ValueError, ["noise", "(B, …)", "(2,)"]),
        ({"steps": 3}, TypeError, ["steps", "stochastic"]),
        ({"nfe": 1000, "time_dist": (3.0, 1.0, 1.0)}, ValueError, ["1000", "fp32"]),
    ],
)
def test_errors_name_the_value_and_the_remedy(options, error, words):
    def never(*_):
        pytest.fail("the field was asked before the settings were checked")

    arguments = {"nfe": 2, "noise": torch.zeros(2, 2)} | options
    if "uncond" in options and len(options["uncond"]) == 3:
        never = smooth
    with pytest.raises(error) as caught:
        sample(never, arguments.pop("noise"), torch.ones(2), **arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_field_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\)"):
        sample(lambda x, t, r, c: torch.zeros(1, 3), torch.zeros(1, 2), None, nfe=1)
