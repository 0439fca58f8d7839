"""Laws that known samplers of this family break. The numbers count their published defects."""

import weakref

import pytest
import torch

from twinflow.sampling import preset, published_preset, sample, sample_trajectory, seeded_noise

from .fields import Recorder, by_condition, smooth

STYLES = ("few", "any", "multi")


@pytest.mark.parametrize("style", STYLES)
def test_defect_01_order_2_gives_the_corrector_its_target_and_survives_t_of_one(style):
    recorder = Recorder(smooth)
    run = sample_trajectory(
        recorder, seeded_noise((4,), [0]), None, nfe=5, style=style, order=2, gaps=(0.0, 0.0)
    )
    assert recorder.t[0] == 1.0
    assert all(x_hat.isfinite().all() for x_hat in run.x_hats)
    times = torch.tensor([*run.times, 0.0], dtype=torch.float64).float().tolist()
    a, b, c, end = times
    expected = {"few": [end] * 5, "any": [b, a, c, b, end], "multi": [a, b, b, c, c]}
    assert recorder.t == [a, b, b, c, c]
    assert recorder.r == expected[style]


def test_defect_02_the_sde_share_is_evaluated_at_every_step():
    noise = seeded_noise((50,), [0])
    run = sample_trajectory(
        smooth,
        noise,
        None,
        nfe=6,
        style="multi",
        stochastic="sde",
        gaps=(0.0, 0.0),
        time_dist=(1.0, 1.0, 1.0),
        generator=torch.Generator().manual_seed(1),
    )
    generator = torch.Generator().manual_seed(1)
    times, x, shares = (*run.times, 0.0), noise, []
    for t, t_next, state in zip(times[:-2], times[1:-1], run.states[1:], strict=True):
        v = smooth(x, torch.full((1,), t), torch.full((1,), t), None)
        shares.append(min(1.0, 2 * t * (t - t_next) / t_next**2))
        z = (1 - shares[-1]) ** 0.5 * (x + (1 - t) * v) + shares[-1] ** 0.5 * torch.randn(
            1, 50, generator=generator
        )
        x = (1 - t_next) * (x - t * v) + t_next * z
        torch.testing.assert_close(state, x)
    assert len(set(shares)) > 2
    assert run.sample.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_defect_03_the_schedule_does_not_depend_on_the_dtype_of_the_noise(dtype):
    recorder = Recorder(smooth)
    noise = seeded_noise((4,), [0], dtype=dtype)
    sample(recorder, noise, None, nfe=4, settings=published_preset(4))
    exact = torch.linspace(0.999, 0.5, 4, dtype=torch.float64)
    assert torch.equal(torch.tensor(recorder.t, dtype=torch.float64).float(), exact.float())


@pytest.mark.parametrize("stochastic", [0.5, 1.0, "sde"])
def test_defect_04_same_seed_same_picture_with_fresh_noise(stochastic):
    pictures = []
    for state in (0, 1):
        torch.manual_seed(state)
        pictures.append(sample(smooth, seeded_noise((4,), [7, 8]), None, nfe=4, stochastic=stochastic))
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], sample(smooth, seeded_noise((4,), [7, 9]), None, nfe=4))


def test_defect_05_only_the_trajectory_keeps_the_states():
    alive: list[weakref.ref] = []

    def field(x, t, r, cond):
        # The state of this step, and at most what the step before still needs.
        assert sum(ref() is not None for ref in alive) <= 2
        alive.append(weakref.ref(x))
        return smooth(x, t, r, cond)

    sample(field, seeded_noise((4,), [0]), None, nfe=20, style="multi")
    assert len(alive) == 20


@pytest.mark.parametrize("nfe", [1, 9, 10, 11, 12, 20, 30])
@pytest.mark.parametrize("style", STYLES)
def test_defect_06_the_last_estimate_is_returned(style, nfe):
    recorder = Recorder(smooth)
    noise = seeded_noise((4,), [0])
    result = sample(recorder, noise, None, nfe=nfe, style=style)
    assert len(recorder.calls) == nfe
    x_t, t, r, _ = recorder.calls[-1]
    torch.testing.assert_close(result, x_t - t[:, None] * smooth(x_t, t, r, None))
    run = sample_trajectory(smooth, noise, None, nfe=nfe, style=style)
    assert len(run.x_hats) == nfe
    assert torch.equal(run.sample, result)


def test_defect_07_extrapolation_begins_with_the_first_history():
    noise = seeded_noise((4,), [0])
    options = {"nfe": 4, "style": "multi", "gaps": (0.0, 0.0), "extrapolation": 0.5}
    run = sample_trajectory(smooth, noise, None, **options)
    plain = sample_trajectory(smooth, noise, None, **(options | {"extrapolation": 0.0}))
    times = (*run.times, 0.0)
    torch.testing.assert_close(run.states[1], plain.states[1])  # nothing to go on from yet
    # The second step moves both estimates on; the history that it uses is not itself extrapolated.
    for i in (1, 2):
        estimates = []
        for k in (i - 1, i):
            x_hat = run.x_hats[k]
            v = (run.states[k] - x_hat) / times[k]
            estimates.append((x_hat, run.states[k] + (1 - times[k]) * v))
        (x_before, z_before), (x_hat, z_hat) = estimates
        t = times[i + 1]
        expected = (1 - t) * (1.5 * x_hat - 0.5 * x_before) + t * (1.5 * z_hat - 0.5 * z_before)
        torch.testing.assert_close(run.states[i + 1], expected)


@pytest.mark.parametrize("style", STYLES)
def test_defect_08_every_style_asks_for_its_own_target(style):
    recorder = Recorder(smooth)
    sample(recorder, seeded_noise((4,), [0]), None, nfe=4, style=style, gaps=(0.0, 0.0), time_dist=(1, 1, 1))
    assert recorder.t == [1, 0.75, 0.5, 0.25]
    assert recorder.r == {"few": [0] * 4, "any": [0.75, 0.5, 0.25, 0], "multi": recorder.t}[style]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("gaps", [(0.0, 0.0), (0.0, 0.5)])
def test_defect_09_order_2_never_asks_at_data(style, gaps):
    for nfe in range(1, 8):
        recorder = Recorder(smooth)
        sample(recorder, seeded_noise((4,), [0]), None, nfe=nfe, style=style, order=2, gaps=gaps)
        assert min(recorder.t) > 0
        assert len(recorder.calls) == nfe


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("uncond_rows", [1, 3])
def test_defect_10_guidance_gives_each_half_its_target_and_its_condition(style, uncond_rows):
    recorder = Recorder(by_condition)
    cond, uncond = torch.tensor([2.0, 3.0, 5.0]), torch.tensor([0.5, 0.7, 0.9])[:uncond_rows]
    noise = seeded_noise((4,), [0, 1, 2])
    options = {"style": style, "stochastic": 0.0, "gaps": (0.0, 0.0), "time_dist": (1.0, 1.0, 1.0)}
    run = sample_trajectory(recorder, noise, cond, nfe=4, uncond=uncond, guidance=3.0, **options)
    x, times = noise, (1.0, 0.5, 0.0)
    for i, (x_t, t, r, both) in enumerate(recorder.calls):
        target = {"few": 0.0, "any": times[i + 1], "multi": times[i]}[style]
        assert t.tolist() == [times[i]] * 6
        assert r.tolist() == [target] * 6
        assert torch.equal(x_t[:3], x_t[3:])
        assert torch.equal(both, torch.cat([uncond.expand(3), cond]))
        v_u, v_c = (by_condition(x, t[:3], r[:3], c) for c in (uncond.expand(3), cond))
        x = x - (times[i] - times[i + 1]) * (v_u + 3.0 * (v_c - v_u))
    torch.testing.assert_close(run.sample, x)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("nfe", [1, 2, 4, 8])
def test_defect_11_a_plain_call_uses_the_recommended_settings(style, nfe):
    noise = seeded_noise((4,), [0])
    plain = sample(smooth, noise, None, nfe=nfe, style=style)
    assert torch.equal(plain, sample(smooth, noise, None, nfe=nfe, settings=preset(nfe, style)))


def test_defect_12_zero_is_a_value_and_not_a_default():
    recorder = Recorder(smooth)
    run = sample_trajectory(
        recorder, seeded_noise((4,), [0]), None, nfe=2, gaps=(0.0, 0.0), stochastic=0.0, extrapolation=0.0
    )
    assert recorder.t == [1.0, 0.5]
    torch.testing.assert_close(run.states[1], run.states[0] - 0.5 * (run.states[0] - run.x_hats[0]))
