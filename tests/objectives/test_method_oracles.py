"""Every rival equals the slow version written from its paper: loss and gradients, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from twinflow.objectives import (
    DMD,
    DMD2,
    SCM,
    ConsistencyDistillation,
    ConsistencyTraining,
    MeanFlow,
    ProgressiveDistillation,
    SanaSprint,
)
from twinflow.objectives.discriminator import FeatureHeads
from twinflow.objectives.time_weight import TimeWeight

from . import method_oracles as oracle
from .toys import FeatureToyField, Recorder, ToyField, batch, seeded

ROWS = 6


def lively_weight() -> TimeWeight:
    weight = TimeWeight().double()
    with torch.no_grad():
        weight.linear.weight.normal_(std=0.2, generator=seeded(5))
        weight.linear.bias.fill_(0.1)
    return weight


def heads_for(field: FeatureToyField) -> FeatureHeads:
    x, cond, _ = batch(1)
    torch.manual_seed(7)
    return FeatureHeads.of(field.features(x, torch.ones(1, dtype=x.dtype), cond), width=5).double()


def assert_equal(loss: Tensor, expected: Tensor, *networks: Any, value: bool = True) -> None:
    """Equal losses (unless they differ by what has no gradient) and equal gradients of all parameters."""
    if value:
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    parameters = [p for network in networks for p in network.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    assert any(g is not None and g.abs().max() > 1e-9 for g in wanted)
    for one, other in zip(found, wanted, strict=True):
        zero = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(
            zero if one is None else one, zero if other is None else other, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_consistency_training(decay: float) -> None:
    field, average = ToyField(1), ToyField(2)
    x, cond, _ = batch(ROWS)
    objective = ConsistencyTraining(start_intervals=4, final_intervals=16, target_decay=decay)
    for at, intervals in ((0, 4), (10, 8), (29, 16)):
        objective.begin(at, 30)
        step = objective.step(field, x, cond, networks={"target": average}, generator=seeded(at))
        expected = oracle.consistency_training(
            field, average if decay else field, x, cond, seeded(at), intervals=intervals
        )
        assert_equal(step.loss, expected, field)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_consistency_distillation(solver: Any, decay: float) -> None:
    field, average, teacher = ToyField(1), ToyField(2), ToyField(3)
    x, cond, uncond = batch(ROWS)
    objective = ConsistencyDistillation(intervals=7, solver=solver, guidance=1.5, target_decay=decay)
    step = objective.step(
        field, x, cond, uncond=uncond, teacher=teacher, networks={"target": average}, generator=seeded()
    )
    expected = oracle.consistency_distillation(
        field,
        average if decay else field,
        teacher,
        x,
        cond,
        uncond,
        seeded(),
        intervals=7,
        heun=solver == "heun",
        w=1.5,
    )
    assert_equal(step.loss, expected, field)


@pytest.mark.parametrize("source", ["teacher", "data"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("at", [0, 30, 100])
def test_scm(source: Any, adaptive: bool, at: int) -> None:
    field, teacher, weight = ToyField(1), ToyField(3), lively_weight()
    x, cond, uncond = batch(ROWS)
    w = 1.5 if source == "teacher" else 0.0
    objective = SCM(
        source=source,
        guidance=w,
        adaptive_weighting=adaptive,
        prior_weighting=not adaptive,
        tangent_warmup=100,
        derivative="forward",
    )
    objective.begin(at, 200)
    step = objective.step(
        field, x, cond, uncond=uncond, teacher=teacher, networks={"weighting": weight}, generator=seeded(at)
    )
    expected = oracle.scm(
        field,
        teacher if source == "teacher" else None,
        weight if adaptive else None,
        x,
        cond,
        uncond,
        seeded(at),
        w=w,
        rho=min(1, at / 100),
        prior=not adaptive,
    )
    assert_equal(step.loss, expected, field, *([weight] if adaptive else []))


@pytest.mark.parametrize("guidance", [(1.0, 0.0), (1.0, 0.6), (0.5, 0.3)])
@pytest.mark.parametrize("power", [1.0, 0.0])
def test_mean_flow(guidance: tuple[float, float], power: float) -> None:
    field = ToyField(1)
    x, cond, uncond = batch(ROWS)
    omega, kappa = guidance
    objective = MeanFlow(
        jumping=0.5, guidance=kappa, guidance_mix=omega, weight_power=power, derivative="forward"
    )
    step = objective.step(field, x, cond, uncond=uncond, generator=seeded(2))
    assert {"jump", "velocity"} == set(step.rows.roles)
    assert [role == "jump" for role in step.rows.roles] == (step.rows.t > step.rows.r).tolist()
    expected = oracle.mean_flow(field, x, cond, uncond, seeded(2), omega=omega, kappa=kappa, p=power)
    assert_equal(step.loss, expected, field)


def test_mean_flow_guides_rows_inside_its_range_each_by_its_own_condition() -> None:
    field = ToyField(1)
    x, cond, _ = batch(ROWS)
    uncond = cond.flip(0) * 2
    objective = MeanFlow(
        jumping=0.5, guidance=0.6, guidance_range=(0.4, 0.7), weight_power=0.0, derivative="forward"
    )
    step = objective.step(field, x, cond, uncond=uncond, generator=seeded(2))
    guided = (step.rows.t > 0.4) & (step.rows.t < 0.7)
    assert 0 < guided.sum() < ROWS
    assert not guided[: int(guided.sum())].all()  # or their numbers would be those of the first rows
    expected = oracle.mean_flow(
        field, x, cond, uncond, seeded(2), omega=1.0, kappa=0.6, p=0.0, low=0.4, high=0.7
    )
    assert_equal(step.loss, expected, field)


def test_progressive_distillation() -> None:
    field, before = ToyField(1), ToyField(2)
    x, cond, uncond = batch(ROWS)
    objective = ProgressiveDistillation(start_steps=4, guidance=1.5)
    for at, n, w in ((0, 4, 1.5), (20, 2, 0.0), (49, 1, 0.0)):
        objective.begin(at, 50)
        assert objective.steps == n
        step = objective.step(
            field, x, cond, uncond=uncond, networks={"teacher": before}, generator=seeded(at)
        )
        expected = oracle.progressive(field, before, x, cond, uncond, seeded(at), n=n, w=w)
        assert_equal(step.loss, expected, field)


def test_dmd() -> None:
    field, teacher, fake = ToyField(1), ToyField(2), ToyField(3)
    x, cond, uncond = batch(ROWS)
    objective = DMD(guidance=1.5)
    for at in (0, 1):
        phase = objective.begin(at, 2)
        step = objective.step(
            field, x, cond, uncond=uncond, teacher=teacher, networks={"fake_score": fake}, generator=seeded()
        )
        g = seeded()
        t = 0.02 + 0.96 * oracle.rand(ROWS, g)
        z, eps = oracle.noise(x, g), oracle.noise(x, g)
        sample = oracle.sample_from(field, z, torch.ones_like(t), cond)
        if phase.trains == ("fake_score",):
            assert_equal(step.loss, oracle.flow_loss(fake, sample.detach(), eps, t, cond), fake)
        else:
            expected = oracle.matching(sample, eps, t, teacher, fake, cond, uncond, 1.5)
            assert_equal(step.loss, expected, field, value=False)


@pytest.mark.parametrize("lockstep", [False, True])
def test_dmd2(lockstep: bool) -> None:
    field, teacher, fake = ToyField(1), ToyField(2), FeatureToyField(3)
    heads = heads_for(fake)
    x, cond, uncond = batch(ROWS)
    times = (1.0, 0.6, 0.2)
    objective = DMD2(
        guidance=1.5, times=times, critic_steps=2, gan_generator=0.7, gan_critic=0.3, lockstep=lockstep
    )
    for at in (0, 2):
        phase = objective.begin(at, 3)
        step = objective.step(
            field,
            x,
            cond,
            uncond=uncond,
            teacher=teacher,
            networks={"fake_score": fake, "discriminator": heads},
            generator=seeded(),
        )
        g = seeded()
        t = 0.02 + 0.96 * oracle.rand(ROWS, g)
        number = torch.randint(3, (ROWS,), generator=g)
        eps = oracle.noise(x, g)
        z = [oracle.noise(x, g) for _ in range(3)]
        z_real = oracle.noise(x, g)
        starts = []
        with torch.no_grad():
            for row, k in enumerate(number.tolist()):  # each row alone
                state = z[0][row : row + 1]
                for j in range(k):
                    data = oracle.sample_from(
                        field, state, torch.tensor([times[j]], dtype=torch.float64), cond[row : row + 1]
                    )
                    state = (1 - times[j + 1]) * data + times[j + 1] * z[j + 1][row : row + 1]
                starts.append(state)
        u = torch.tensor([times[k] for k in number.tolist()], dtype=torch.float64)
        sample = oracle.sample_from(field, torch.cat(starts), u, cond)
        softplus = torch.nn.functional.softplus

        def logits(data: Tensor, noise: Tensor, t: Tensor = t) -> Tensor:
            state = oracle.col(t) * noise + (1 - oracle.col(t)) * data
            return heads(fake.features(state, t, cond))

        if phase.name == "critic":
            assert phase.trains == ("fake_score", "discriminator")
            sample = sample.detach()
            gan = softplus(-logits(x, z_real)).mean() + softplus(logits(sample, eps)).mean()
            expected = oracle.flow_loss(fake, sample, eps, t, cond) + 0.3 * gan
            assert_equal(step.loss, expected, fake, heads)
        else:
            assert phase.trains == ("student",)
            expected = oracle.matching(sample, eps, t, teacher, fake, cond, uncond, 1.5)
            expected = expected + 0.7 * softplus(-logits(sample, eps)).mean()
            assert_equal(step.loss, expected, field, value=False)


def test_sana_sprint() -> None:
    field, teacher, weight = ToyField(1), FeatureToyField(2), lively_weight()
    heads = heads_for(teacher)
    x, cond, uncond = batch(ROWS)
    objective = SanaSprint(guidance=1.5, tangent_warmup=10, derivative="forward", adversarial=0.5)
    networks = {"discriminator": heads, "weighting": weight}
    for at in (4, 5):
        phase = objective.begin(at, 20)
        step = objective.step(
            field, x, cond, uncond=uncond, teacher=teacher, networks=networks, generator=seeded()
        )
        g = seeded()
        t, u = (oracle.log_normal(ROWS, g, 0.2, 1.6) for _ in range(2))
        u = torch.where(oracle.rand(ROWS, g) < 0.5, torch.ones_like(u), u)
        tau = oracle.log_normal(ROWS, g, -0.6, 1.0)
        z, z_u, z_fake, z_real = (oracle.noise(x, g) for _ in range(4))
        sample = oracle.sample_from(field, oracle.col(u) * z_u + (1 - oracle.col(u)) * x, u, cond)

        def logits(data: Tensor, noise: Tensor, tau: Tensor = tau) -> Tensor:
            state = oracle.col(tau) * noise + (1 - oracle.col(tau)) * data
            return heads(teacher.features(state, tau, cond))

        if phase.trains == ("discriminator",):
            real, fake = logits(x, z_real), logits(sample.detach(), z_fake)
            expected = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
            assert_equal(step.loss, expected, heads)
        else:
            assert phase.trains == ("student", "weighting")
            expected = oracle.scm(
                field, teacher, weight, x, cond, uncond, g, w=1.5, rho=0.4, prior=True, drawn=(t, z)
            )
            assert_equal(step.loss, expected - 0.5 * logits(sample, z_fake).mean(), field, weight)


def test_calls_are_few_and_rows_are_those_that_matter() -> None:
    """Forwards with and without gradient of the student, by method and phase, at B = 8."""
    x, cond, uncond = batch(8)

    def rows(objective: Any, at: int = 0) -> tuple[int, int]:
        field, teacher = Recorder(ToyField(1)), FeatureToyField(2)
        objective.begin(at, 100)
        networks = {
            "target": ToyField(3),
            "teacher": ToyField(3),
            "fake_score": FeatureToyField(3),
            "discriminator": heads_for(teacher),
            "weighting": lively_weight(),
        }
        given = {"networks": networks} if objective.networks() else {}
        objective.step(field, x, cond, uncond=uncond, teacher=teacher, generator=seeded(), **given)
        return field.grad_rows, field.rows - field.grad_rows

    assert rows(ConsistencyTraining()) == (8, 8)
    assert rows(ConsistencyDistillation()) == (8, 0)  # the average is asked for the target
    assert rows(SCM(tangent_warmup=0, derivative="finite")) == (8, 8)
    assert rows(SCM(tangent_warmup=10, derivative="finite")) == (8, 8)  # every step costs the same
    assert rows(MeanFlow(jumping=0.0)) == (8, 0)
    assert rows(MeanFlow(jumping=1.0, derivative="finite")) == (8, 8)
    assert rows(ProgressiveDistillation()) == (8, 0)
    assert rows(DMD(), 0) == (0, 8)
    assert rows(DMD(), 1) == (8, 0)
    assert rows(DMD2(times=(1.0,)), 5) == (8, 0)
    assert rows(SanaSprint(tangent_warmup=0, derivative="finite"), 0) == (16, 8)
    assert rows(SanaSprint(), 1) == (0, 8)
