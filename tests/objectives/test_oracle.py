"""The lean schedule computes what the slow, obvious version computes: loss and every gradient, in fp64."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from twinflow.objectives import RCGM, TwinFlow

from .oracle import twinflow_loss
from .toys import ToyField, batch, seeded

CHOICES: dict[str, list[Any]] = {
    "teacher": ["self", "ema", "frozen"],
    "order": [1, 2, 3],
    "nodes": ["uniform", "random"],
    "longest_jump": [None, 0.3],
    "guidance": [0.0, 0.5, 0.8],
    "guidance_range": [(0.0, 1.0), (0.3, 0.7)],
    "image_free": [False, True],
    "loss": ["barron", "l2"],
    "barron_alpha": [1.0, 2.0, 0.0],
    "weighting": ["tangent", "none"],
    "rectify": [0.0, 0.5],
    "rectify_clamp": [1.0, 0.1, None],
    "clamp": [1.0, None, 0.2],
    "delta": [0.01, 0.1],
    "any_step_span": [1.0, 0.6, 0.02],
    "tangent_gap": [0.05, 0.0],
    "velocity": ["data", "field"],
    "time": [{"kind": "uniform"}, {"kind": "uniform", "scale": 0.8}],
    "lockstep": [False, True],
    "roles": [
        {"one_step": 1, "tangent": 1, "any_step": 1, "fake": 1},
        {"one_step": 1, "tangent": 1, "any_step": 1, "fake": 1, "consistency": 1},
        {"one_step": 1},
        {"any_step": 1},
        {"fake": 1},
        {"tangent": 2, "fake": 1},
        {"one_step": 1, "consistency": 2, "fake": 1},
    ],
}


def configurations(count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Random mixes of all choices; every choice of every setting appears many times."""
    chooser = random.Random(0)
    while count > 0:
        config = {key: chooser.choice(values) for key, values in CHOICES.items()}
        if config["teacher"] == "frozen" and config["image_free"] and config["guidance"] == 0:
            continue
        if config["nodes"] == "random" and config["longest_jump"] is not None:
            continue
        count -= 1
        yield chooser.randint(1, 9), config


def assert_equals_oracle(objective: TwinFlow, rows: int, *, seed: int) -> None:
    field, teacher = ToyField(1), ToyField(2)
    x, cond, uncond = batch(rows, seed=seed)
    step = objective.step(field, x, cond, uncond=uncond, teacher=teacher, generator=seeded(seed))
    grads = torch.autograd.grad(step.loss, list(field.parameters()))
    expected = twinflow_loss(
        field=field,
        teacher=teacher,
        x=x,
        cond=cond,
        uncond=uncond,
        roles=step.rows.roles,
        generator=seeded(seed),
        settings=objective,
        one_step_share=objective.roles.share("one_step"),
    )
    expected_grads = torch.autograd.grad(expected, list(field.parameters()))
    torch.testing.assert_close(step.loss, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rows", "config"), list(configurations(200)))
def test_equals_the_obvious_version(rows: int, config: dict[str, Any]) -> None:
    objective = TwinFlow(**config)
    for seed in range(2):
        assert_equals_oracle(objective, rows, seed=seed)


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("teacher", ["self", "ema", "frozen"])
def test_defaults_equal_the_obvious_version_at_every_batch_size(rows: int, teacher: str) -> None:
    assert_equals_oracle(TwinFlow(teacher=teacher), rows, seed=rows)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_rcgm_equals_the_obvious_version(order: int) -> None:
    assert_equals_oracle(RCGM(order=order), 5, seed=order)
    practical = {"one_step": 1, "tangent": 1, "any_step": 1}
    assert_equals_oracle(RCGM(order=order, roles=practical), 6, seed=order)


def test_oracle_has_gradient_to_compare() -> None:
    x, cond, uncond = batch(8)
    field = ToyField(1)
    TwinFlow(teacher="self").step(field, x, cond, uncond=uncond, generator=seeded()).loss.backward()
    assert all(p.grad.abs().max() > 1e-3 for p in field.parameters())


def test_frozen_teacher_gets_no_gradient_and_is_only_asked_for_velocities() -> None:
    x, cond, uncond = batch(8)
    field, teacher = ToyField(1), ToyField(2)
    times = []

    def asked(x_t, t, r, c):
        times.append((t, r))
        return teacher(x_t, t, r, c)

    objective = TwinFlow(teacher="frozen", guidance=4.0)
    objective.step(field, x, cond, uncond=uncond, teacher=asked, generator=seeded()).loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert len(times) == 1
    assert all(torch.equal(t, r) and (t > 0).all() for t, r in times)
