"""Rivals of several networks equal the slow versions written from their papers: losses and gradients, in fp64."""

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

from . import method_oracles as oracle
from .equality import ROWS, assert_equal, heads_for, lively_weight
from .toys import FeatureToyField, Recorder, ToyField, batch, seeded


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


@pytest.mark.parametrize(("adversarial", "max_time"), [(0.5, 0.5), (0.25, 1.0), (0.0, 0.0)])
def test_sana_sprint(adversarial: float, max_time: float) -> None:
    field, teacher, weight = ToyField(1), FeatureToyField(2), lively_weight()
    heads = heads_for(teacher)
    x, cond, uncond = batch(ROWS)
    objective = SanaSprint(
        guidance=1.5, tangent_warmup=10, derivative="forward", adversarial=adversarial, max_time=max_time
    )
    networks = {"discriminator": heads, "weighting": weight}
    for at in (4, 5):
        phase = objective.begin(at, 20)
        step = objective.step(
            field, x, cond, uncond=uncond, teacher=teacher, networks=networks, generator=seeded()
        )
        g = seeded()
        t, u = (oracle.log_normal(ROWS, g, 0.2, 1.6) for _ in range(2))
        u = torch.where(oracle.rand(ROWS, g) < max_time, torch.ones_like(u), u)
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
            expected = expected - adversarial * logits(sample, z_fake).mean()
            assert_equal(step.loss, expected, field, weight)
            assert ("adversarial" in step.losses) == (adversarial > 0)


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
    assert rows(SanaSprint(tangent_warmup=0, derivative="finite", adversarial=0.0), 0) == (8, 8)
    assert rows(SanaSprint(), 1) == (0, 8)
