"""Every rival equals the slow version written from its paper: loss and gradients, in fp64."""

from __future__ import annotations

from typing import Any

import pytest

from twinflow.objectives import (
    SCM,
    ConsistencyDistillation,
    ConsistencyTraining,
    MeanFlow,
    ProgressiveDistillation,
)

from . import method_oracles as oracle
from .equality import ROWS, assert_equal, lively_weight
from .toys import ToyField, batch, seeded


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


@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_one", "velocity"])
def test_progressive_distillation(weighting: Any) -> None:
    field, before = ToyField(1), ToyField(2)
    x, cond, uncond = batch(ROWS)
    objective = ProgressiveDistillation(start_steps=4, guidance=1.5, weighting=weighting)
    for at, n, w in ((0, 4, 1.5), (20, 2, 0.0), (49, 1, 0.0)):
        objective.begin(at, 50)
        assert objective.steps == n
        step = objective.step(
            field, x, cond, uncond=uncond, networks={"teacher": before}, generator=seeded(at)
        )
        expected = oracle.progressive(
            field, before, x, cond, uncond, seeded(at), n=n, w=w, weighting=weighting
        )
        assert_equal(step.loss, expected, field)
