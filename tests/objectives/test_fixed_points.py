"""On Gaussian data, where everything is known, each rival's fixed point is the right map or distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from twinflow.objectives.queries import Evaluator

from .gaussian import GaussianVelocity, LogRatio, NearFlowMap, Scale
from .toys import seeded

S = 0.5


def data(rows: int, seed: int = 0, *, width: int = 1) -> Tensor:
    return S * torch.randn(rows, width, generator=seeded(100 + seed), dtype=torch.float64)


def gradient(
    objective: Any, field: Any, of: Tensor, *, rows: int, seed: int = 0, width: int = 1, **given: Any
) -> float:
    step = objective.step(field, data(rows, seed, width=width), None, generator=seeded(seed), **given)
    return torch.autograd.grad(step.loss, of)[0].item()


def mean_and_error(sample: Callable[[int], float], count: int = 16) -> tuple[float, float]:
    values = torch.tensor([sample(seed) for seed in range(count)], dtype=torch.float64)
    return values.mean().item(), values.std().item() / math.sqrt(count)


# Maps: consistency models, sCM, MeanFlow, progressive distillation


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3)])
def test_consistency_distillation_of_the_exact_map_errs_by_that_of_the_solver(
    solver: Any, order: int
) -> None:
    def worst(intervals: int) -> float:
        objective = ConsistencyDistillation(
            intervals=intervals, solver=solver, huber_c=1e-9, target_decay=0.0
        )
        step = objective.step(
            NearFlowMap(S), data(400), None, teacher=GaussianVelocity(S), generator=seeded()
        )
        return step.rows.loss.max().item()

    assert worst(200) / worst(400) == pytest.approx(2**order, rel=0.15)


def maps() -> dict[str, tuple[Any, bool]]:
    """Objectives whose fixed point is the flow map, and whether they take a teacher. Plain squares."""
    return {
        "consistency_distillation": (ConsistencyDistillation(huber_c=1e3, target_decay=0.0), True),
        "consistency_training": (
            ConsistencyTraining(start_intervals=100, final_intervals=100, huber_c=1e3, time={}),
            False,
        ),
        "scm": (SCM(tangent_warmup=0, adaptive_weighting=False), True),
        "scm_data": (SCM(source="data", tangent_warmup=0, adaptive_weighting=False, tangent_c=100.0), False),
        "mean_flow": (MeanFlow(jumping=1.0, weight_power=0.0, time={}), False),
        "progressive": (ProgressiveDistillation(start_steps=4), False),
    }


@pytest.mark.parametrize("name", list(maps()))
@pytest.mark.parametrize("error", [-0.3, 0.3])
def test_descent_leads_to_the_flow_map(name: str, error: float) -> None:
    objective, taught = maps()[name]
    given: dict[str, Any] = {"teacher": GaussianVelocity(S)} if taught else {}
    if name == "progressive":
        given["networks"] = {"teacher": NearFlowMap(S)}

    def sample(seed: int, error: float) -> float:
        field = NearFlowMap(S, error)
        return gradient(objective, field, field.error, rows=3000, seed=seed, **given)

    mean, spread = mean_and_error(lambda seed: sample(seed, error))
    assert mean * error > 0
    assert abs(mean) > 5 * spread
    zero, zero_spread = mean_and_error(lambda seed: sample(seed, 0.0))
    assert abs(zero) < 5 * zero_spread + 0.06 * abs(mean)  # discrete grids have a bias of their order


@pytest.mark.parametrize("mode", ["forward", "finite"])
def test_the_exact_map_has_no_tangent(mode: Any) -> None:
    def tangent(error: float, delta: float) -> float:
        objective = SCM(tangent_warmup=0, adaptive_weighting=False, derivative=mode, delta=delta)
        step = objective.step(
            NearFlowMap(S, error), data(500), None, teacher=GaussianVelocity(S), generator=seeded()
        )
        return float(step.metrics["tangent_rms"])

    assert tangent(0.1, 1e-3) > 1e-3
    if mode == "forward":
        assert tangent(0.0, 1e-3) < 1e-12
    else:
        assert tangent(0.0, 1e-3) / tangent(0.0, 1e-4) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("mode", ["forward", "finite"])
def test_of_a_single_point_of_data_the_straight_field_has_no_residual(mode: Any) -> None:
    """Where the row's velocity is the field's, the losses that learn from data vanish without noise."""
    point = torch.full((200, 2), 1.5, dtype=torch.float64)

    def field(x_t: Tensor, t: Tensor, r: Tensor, cond: None) -> Tensor:
        return (x_t - 1.5) / t.clamp(min=1e-9)[:, None]

    mean_flow = MeanFlow(derivative=mode, weight_power=0.0, jumping=0.5)
    assert mean_flow.step(field, point, None, generator=seeded()).loss < 1e-18
    scm = SCM(source="data", derivative=mode, tangent_warmup=0, adaptive_weighting=False, delta=1e-4)
    tangent = scm.step(field, point, None, generator=seeded()).metrics["tangent_rms"]
    assert tangent < (1e-10 if mode == "forward" else 1e-3)  # TrigFlow's paths are bent: O(delta)
    assert ConsistencyTraining().step(field, point, None, generator=seeded()).loss < 1e-9


def test_two_exact_half_steps_are_one_exact_step() -> None:
    objective = ProgressiveDistillation(start_steps=8)
    step = objective.step(
        NearFlowMap(S), data(100), None, networks={"teacher": NearFlowMap(S)}, generator=seeded()
    )
    assert step.loss < 1e-28


# Distributions: DMD, DMD2, SANA-Sprint's discriminator


@pytest.mark.parametrize(
    "objective", [DMD(), DMD2(times=(1.0,), gan_generator=0.0, gan_critic=0.0)], ids=["dmd", "dmd2"]
)
def test_distribution_matching_pulls_the_spread_to_the_datas(objective: Any) -> None:
    at = objective.critic_steps  # the student's turn
    objective.begin(at, at + 1)

    def pull(a: float, seed: int = 0) -> float:
        field = Scale(a)
        # Rows of 32 numbers, as eq. 8 divides by a mean over the row. The fake score is that of what a makes.
        return gradient(
            objective,
            field,
            field.a,
            rows=100,
            seed=seed,
            width=32,
            teacher=GaussianVelocity(S),
            networks={"fake_score": GaussianVelocity(a)},
        )

    assert pull(S) == pytest.approx(0, abs=1e-13)
    for a in (0.2, 0.4, 0.6, 1.5):
        mean, spread = mean_and_error(lambda seed, a=a: pull(a, seed), count=5)
        assert mean * (a - S) > 0
        assert abs(mean) > 5 * spread


def test_the_fake_score_learns_the_velocity_of_the_samples() -> None:
    objective, a = DMD(), 0.8
    objective.begin(0, 2)

    def pull(std: float, seed: int) -> float:
        fake = GaussianVelocity(std)
        return gradient(
            objective,
            Scale(a),
            fake.std,
            rows=4000,
            seed=seed,
            teacher=GaussianVelocity(S),
            networks={"fake_score": fake},
        )

    for std, sign in ((0.6, -1), (1.0, 1), (a, 0)):
        mean, spread = mean_and_error(lambda seed, std=std: pull(std, seed))
        assert abs(mean) < 5 * spread if sign == 0 else mean * sign > 5 * spread


def adversarial_pull(name: str, a: float, seed: int) -> float:
    """The part of the adversarial loss in d loss / d a, with the best discriminator for this a."""
    field, teacher = Scale(a), GaussianVelocity(S)
    networks = {
        "fake_score": GaussianVelocity(a),
        "discriminator": LogRatio(real=S, fake=a),
    }

    def whole(weight: float) -> float:
        objective: Any
        if name == "dmd2":
            objective = DMD2(times=(1.0,), gan_generator=weight)
        else:
            objective = SanaSprint(
                adversarial=weight, max_time=1.0, adaptive_weighting=False, derivative="forward"
            )
        at = 5 if name == "dmd2" else 0
        objective.begin(at, 6)
        return gradient(objective, field, field.a, rows=2000, seed=seed, teacher=teacher, networks=networks)

    return whole(1.0) - whole(0.0)  # the same random numbers with and without


@pytest.mark.parametrize("name", ["dmd2", "sana_sprint"])
def test_the_adversarial_loss_pulls_the_spread_to_the_datas(name: str) -> None:
    assert adversarial_pull(name, S, 0) == pytest.approx(0, abs=1e-13)
    for a in (0.3, 0.8):
        mean, spread = mean_and_error(lambda seed, a=a: adversarial_pull(name, a, seed), count=6)
        assert mean * (a - S) > 0
        assert abs(mean) > 5 * spread


def test_the_best_discriminator_is_a_fixed_point_of_the_logistic_loss() -> None:
    objective, a = DMD2(times=(1.0,), gan_critic=1.0), 0.8
    objective.begin(0, 6)

    def pull(gain: float, seed: int) -> float:
        heads = LogRatio(real=S, fake=a)
        with torch.no_grad():
            heads.gain.fill_(gain)
        networks = {"fake_score": GaussianVelocity(a), "discriminator": heads}
        return gradient(
            objective,
            Scale(a),
            heads.gain,
            rows=4000,
            seed=seed,
            teacher=GaussianVelocity(S),
            networks=networks,
        )

    for gain, sign in ((0.3, -1), (2.0, 1), (1.0, 0)):
        mean, spread = mean_and_error(lambda seed, gain=gain: pull(gain, seed))
        assert abs(mean) < 5 * spread if sign == 0 else mean * sign > 5 * spread


def test_backward_simulation_of_the_exact_map_has_the_paths_own_distribution() -> None:
    """From t_k on, states made by an exact generator are noised data, as in training on data."""
    objective, rows = DMD2(times=(1.0, 0.7, 0.4)), 40_000
    ask = Evaluator(cond=None, uncond=None, state_dtype=torch.float64)
    z = [torch.randn(rows, 1, generator=seeded(i), dtype=torch.float64) for i in range(3)]
    number = torch.arange(rows) % 3
    state = objective._simulate(ask, NearFlowMap(S), z, number)
    for k, t in enumerate(objective.times):
        there = state[number == k]
        std = math.sqrt(t**2 + (1 - t) ** 2 * S**2)
        assert there.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * len(there)))
