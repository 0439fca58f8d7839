"""Settings and calls that can't be right are refused by name; steps are reproducible and leave inputs alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twinflow.objectives import (
    DMD,
    DMD2,
    RCGM,
    SCM,
    ConsistencyDistillation,
    FlowMatching,
    MeanFlow,
    ProgressiveDistillation,
    SanaSprint,
    TwinFlow,
)
from twinflow.objectives.roles import ROLE_NAMES

from .toys import ToyField, batch, seeded


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": 0}, ["order", "0", "at least 1"]),
        ({"order": 1.5}, ["order", "1.5"]),
        ({"delta": 0.0}, ["delta", "0.0", "(0, 1)"]),
        ({"delta": float("nan")}, ["delta", "nan"]),
        ({"longest_jump": 0.0}, ["longest_jump", "0.0", "(0, 1]"]),
        ({"longest_jump": 0.2, "nodes": "random"}, ["longest_jump", "nodes='uniform'"]),
        ({"velocity": "mean"}, ["velocity", "mean", "field"]),
        ({"clamp": -1.0}, ["clamp", "-1.0", "None"]),
        ({"nodes": "gauss"}, ["nodes", "gauss", "uniform"]),
        ({"any_step_span": 0.0}, ["any_step_span", "(0, 1]"]),
        ({"tangent_gap": 2.0}, ["tangent_gap", "2.0"]),
        ({"guidance": -0.1}, ["guidance", "-0.1"]),
        ({"guidance": 4.0, "teacher": "ema"}, ["guidance", "4.0", "frozen", "guidance=0.8"]),
        ({"guidance_range": (0.5, 0.5)}, ["guidance_range", "(0.5, 0.5)"]),
        ({"teacher": "none"}, ["teacher", "none", "frozen"]),
        ({"loss": "huber"}, ["loss", "huber", "barron"]),
        ({"barron_alpha": 3.0}, ["barron_alpha", "3.0"]),
        ({"barron_c": 0.0}, ["barron_c"]),
        ({"weighting": "snr"}, ["weighting", "snr", "tangent"]),
        ({"rectify": -1.0}, ["rectify", "-1.0"]),
        ({"rectify_clamp": 0.0}, ["rectify_clamp", "None"]),
        ({"image_free": True, "teacher": "frozen", "guidance": 0.0}, ["guidance", "image_free"]),
    ],
)
def test_bad_settings_are_named_with_value_and_what_is_allowed(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        TwinFlow(**settings)
    assert all(word in str(error.value) for word in words)


def test_rcgm_is_any_step_alone() -> None:
    assert {name for name in ROLE_NAMES if RCGM().roles.share(name) > 0} == {"any_step"}


def test_rcgm_refuses_twinflows_losses() -> None:
    with pytest.raises(ValueError, match=r"rectify must be 0 in RCGM, got 0\.5"):
        RCGM(rectify=0.5)
    with pytest.raises(ValueError, match=r"roles.fake must be 0 in RCGM, got 1"):
        RCGM(roles={"any_step": 1, "fake": 1})


def test_bad_calls_name_the_remedy() -> None:
    x, cond, uncond = batch(4)
    field = ToyField()
    with pytest.raises(ValueError, match=r"guidance = 0.6 .*uncond=.* or set guidance=0"):
        TwinFlow(teacher="self").step(field, x, cond)
    with pytest.raises(ValueError, match=r"teacher = 'ema' .* teacher='self'"):
        TwinFlow(teacher="ema").step(field, x, cond, uncond=uncond)
    with pytest.raises(ValueError, match=r"teacher = 'frozen' .*initial"):
        TwinFlow().step(field, x, cond, uncond=uncond)
    with pytest.raises(ValueError, match=r"uncond must have 1 or 4 rows, got 2"):
        TwinFlow(teacher="self").step(field, x, cond, uncond=cond[:2])
    with pytest.raises(ValueError, match=r"cond must have one row for each of the 4 rows of x, got 3"):
        TwinFlow(teacher="self").step(field, x, cond[:3], uncond=uncond)
    with pytest.raises(ValueError, match="at least one row"):
        TwinFlow(teacher="self").step(field, x[:0], cond[:0], uncond=uncond)
    with pytest.raises(ValueError, match="floating point"):
        FlowMatching().step(field, x.long(), cond)
    with pytest.raises(ValueError, match=r"velocity of the state's shape \(4, 2, 3\), got \(4, 6\)"):
        FlowMatching().step(lambda x, t, r, c: x.flatten(1), x, cond)
    with pytest.raises(ValueError, match=r"rank = 2, world_size = 2"):
        TwinFlow().set_shard(2, 2)
    with pytest.raises(ValueError, match="'rows' alone"):
        TwinFlow().load_state_dict({})


def test_what_is_not_needed_is_not_asked_for() -> None:
    x, cond, _ = batch(4)
    for objective in (
        TwinFlow(roles={"fake": 1}),
        TwinFlow(roles={"one_step": 1, "fake": 1}, teacher="frozen"),
        TwinFlow(guidance=0.0, teacher="frozen"),
    ):
        assert torch.isfinite(objective.step(ToyField(), x, cond, generator=seeded()).loss)


@pytest.mark.parametrize("image_free", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_given_is_changed(image_free: bool, dtype: torch.dtype) -> None:
    """Regression: samples of the fake rows overwrote the caller's batch."""
    x, cond, uncond = batch(8, dtype=dtype)
    before = x.clone(), cond.clone(), uncond.clone()
    field = ToyField().to(dtype)
    objective = TwinFlow(teacher="self", image_free=image_free)
    objective.step(field, x, cond, uncond=uncond, generator=seeded()).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip((x, cond, uncond), before, strict=True))


def test_the_field_may_change_its_inputs_in_place_without_harm() -> None:
    field = ToyField()

    def careless(x_t, t, r, cond):
        v = field(x_t, t, r, cond)
        with torch.no_grad():
            x_t.data.fill_(float("nan"))
        return v

    x, cond, uncond = batch(8)
    objective = TwinFlow(teacher="self")
    state = objective.state_dict()
    expected = objective.step(field, x, cond, uncond=uncond, generator=seeded()).loss.item()
    objective.load_state_dict(state)
    with torch.no_grad():
        assert objective.step(careless, x, cond, uncond=uncond, generator=seeded()).loss.item() == expected


def test_image_free_ignores_the_values_of_x() -> None:
    x, cond, uncond = batch(8)
    losses = []
    for values in (x, torch.full_like(x, float("nan"))):
        objective = TwinFlow(teacher="self", image_free=True)
        losses.append(objective.step(ToyField(), values, cond, uncond=uncond, generator=seeded()).loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("make", [TwinFlow, RCGM])
def test_the_same_generator_gives_the_same_step(make: type) -> None:
    x, cond, uncond = batch(7)
    steps = [
        make(teacher="self", nodes="random", longest_jump=None).step(
            ToyField(), x, cond, uncond=uncond, generator=seeded(5)
        )
        for _ in range(2)
    ]
    assert torch.equal(steps[0].loss, steps[1].loss)
    assert steps[0].rows.roles == steps[1].rows.roles


def test_the_random_numbers_do_not_depend_on_which_losses_are_on() -> None:
    x, cond, uncond = batch(6)
    after = set()
    any_nodes = {"nodes": "random", "longest_jump": None}
    for settings in ({}, {"rectify": 0.0}, {"guidance": 0.0}, {"roles": {"fake": 1}}, any_nodes):
        generator = seeded()
        TwinFlow(teacher="self", **settings).step(ToyField(), x, cond, uncond=uncond, generator=generator)
        after.add(torch.rand(1, generator=generator).item())
    assert len(after) == 1


def test_resuming_continues_the_rotation_of_roles() -> None:
    x, cond, uncond = batch(3)

    def run(objective: TwinFlow, steps: range) -> list[float]:
        return [
            objective.step(ToyField(), x, cond, uncond=uncond, generator=seeded(i)).loss.item() for i in steps
        ]

    whole = run(TwinFlow(teacher="self"), range(7))
    first = TwinFlow(teacher="self")
    start = run(first, range(4))
    second = TwinFlow(teacher="self")
    second.load_state_dict(first.state_dict())
    assert start + run(second, range(4, 7)) == whole
    assert first.state_dict() == {"rows": 12}


def test_the_guidance_scale_is_that_of_the_fixed_point() -> None:
    """A self-teacher with omega learns F_c = F_u + (v - F_u) / (1 - omega)."""
    f_u, v, omega = 0.3, 1.0, 0.5
    f_c = 0.0
    for _ in range(200):
        f_c = v + omega * (f_c - f_u)
    assert f_c == pytest.approx(f_u + TwinFlow(guidance=omega, teacher="self").guidance_scale * (v - f_u))
    assert TwinFlow(guidance=4.0, teacher="frozen").guidance_scale == 5
    assert TwinFlow(guidance=4.0, teacher="frozen", image_free=True).guidance_scale == 4
    assert TwinFlow(guidance=0.0).guidance_scale == 1


@pytest.mark.parametrize("teacher", ["self", "ema", "frozen"])
@pytest.mark.parametrize("image_free", [False, True])
def test_without_a_word_the_guidance_has_the_same_scale_with_every_teacher(
    teacher: Any, image_free: bool
) -> None:
    objective = TwinFlow(teacher=teacher, image_free=image_free)
    assert objective.guidance_scale == pytest.approx(2.5)
    assert objective.guidance == pytest.approx(0.6 if teacher != "frozen" else 2.5 if image_free else 1.5)
    assert RCGM(teacher=teacher, image_free=image_free).guidance == objective.guidance


def test_losses_and_metrics_are_detached_and_the_log_explains_a_bad_row() -> None:
    x, cond, uncond = batch(8)
    x[5] = float("nan")
    step = TwinFlow(teacher="self").step(ToyField(), x, cond, uncond=uncond, generator=seeded())
    assert step.loss.requires_grad
    assert not any(value.requires_grad for value in [*step.losses.values(), *step.metrics.values()])
    bad = {i for i in range(8) if not step.rows.loss[i].isfinite()}
    lines = step.rows.describe_non_finite()
    assert len(lines) == len(bad)
    role = step.rows.roles[5]
    if role == "fake":  # its data is the model's own, so nothing is wrong
        assert bad == set()
    else:
        assert bad == {5}
        assert f"row 5: role {role}, t = {step.rows.t[5].item():.6g}" in lines[0]
    torch.testing.assert_close(step.rows.loss.mean(), step.loss.detach(), equal_nan=True)


def test_metrics_are_the_sizes_of_what_the_losses_are_squares_of() -> None:
    x, cond, _ = batch(8)

    def step(role: str, **settings: Any) -> Any:
        objective = TwinFlow(
            roles={role: 1}, loss="l2", weighting="none", teacher="self", guidance=0.0, **settings
        )
        return objective.step(ToyField(1), x, cond, generator=seeded())

    free, bounded = step("any_step", clamp=None), step("any_step", clamp=0.1)
    assert free.metrics["residual_rms"] ** 2 == pytest.approx(free.loss.item())
    assert bounded.metrics == free.metrics  # before the clamp
    assert bounded.loss < 0.01 < free.loss
    rectified = step("one_step", rectify_clamp=0.1)
    assert rectified.metrics["delta_v_rms"] ** 2 == pytest.approx(rectified.losses["rectify"].item())
    assert step("fake").metrics == {}


def test_a_step_speaks_only_of_the_losses_of_its_rows() -> None:
    x, cond, uncond = batch(1)
    objective, seen = TwinFlow(teacher="self"), set()
    for seed in range(8):
        step = objective.step(ToyField(1), x, cond, uncond=uncond, generator=seeded(seed))
        (role,) = step.rows.roles
        seen.add(role)
        assert set(step.losses) == ({role, "rectify"} if role == "one_step" else {role})
        assert all(loss.isfinite() for loss in step.losses.values())
    assert seen == {"one_step", "tangent", "any_step", "fake"}


@pytest.mark.parametrize(
    "method",
    [ConsistencyDistillation, DMD, DMD2, MeanFlow, ProgressiveDistillation, RCGM, SCM, SanaSprint, TwinFlow],
)
@pytest.mark.parametrize("guidance", [-0.5, float("inf"), float("nan")])
def test_every_method_refuses_a_guidance_that_is_none(method: type[Any], guidance: float) -> None:
    with pytest.raises(ValueError, match=f"guidance must be .*{guidance}"):
        method(guidance=guidance)


def test_a_method_that_distils_says_that_its_teacher_stands_still() -> None:
    assert SCM(source="teacher").teacher == "frozen"
    assert SCM(source="data").teacher == "self"
