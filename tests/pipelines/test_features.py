"""Features of every family, and one step of every method on a real pipeline."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from families import FAMILIES, NAMES
from twinflow.errors import TwinflowError
from twinflow.objectives import (
    DMD,
    DMD2,
    RCGM,
    SCM,
    STUDENT,
    ConsistencyDistillation,
    ConsistencyTraining,
    MeanFlow,
    ProgressiveDistillation,
    SanaSprint,
    only_trained,
)
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.features import tapped, trunk
from twinflow.sampling import seeded_noise

from .tiny import PROMPTS

PROMPT = ["a red circle", "two dogs and a rather long tail of words"]


@pytest.mark.parametrize("name", NAMES)
def test_features_depend_on_the_state_and_leave_the_velocity_alone(name: str) -> None:
    family = FAMILIES[name]
    any_step = AnyStepPipeline(family.stock(), call=family.call)
    network = any_step.network
    x = seeded_noise(any_step.latent_shape, range(2)).requires_grad_()
    t = torch.tensor([0.3, 0.8])
    cond = any_step.encode_prompts(PROMPT)
    with torch.no_grad():
        before = any_step.field(x, t, t, cond)
    features = network.features(x, t, cond)
    assert 1 <= len(features) <= 4
    for feature in features:
        assert feature.dim() == 3
        assert feature.shape[0] == 2
        (grad,) = torch.autograd.grad(feature.square().mean(), x, retain_graph=True)
        assert (grad.flatten(1).abs().amax(1) > 0).all()
    # Row by row, and at another time, they are what they should be.
    other = network.features(x, 1 - t, cond)
    assert all(not torch.equal(a, b) for a, b in zip(features, other, strict=True))
    with torch.no_grad():
        assert torch.equal(any_step.field(x, t, t, cond), before)
        with tapped(any_step.pipe.transformer) as seen:
            any_step.field(x, t, t, cond)
    torch.testing.assert_close(seen, features)
    assert not any(block._forward_hooks for block in trunk(any_step.pipe.transformer))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(TwinflowError, match="Linear has no repeated blocks"):
        trunk(nn.Linear(2, 2))


METHODS: list[Any] = [
    RCGM(guidance=0.3, teacher="frozen"),
    ConsistencyTraining(),
    ConsistencyDistillation(guidance=1.5),
    SCM(guidance=1.5, tangent_warmup=0),
    SCM(source="data", tangent_warmup=0, derivative="finite", adaptive_weighting=False),
    MeanFlow(guidance=0.5, jumping=0.5),
    ProgressiveDistillation(guidance=1.5),
    DMD(guidance=1.5),
    DMD2(guidance=1.5, critic_steps=1, times=(1.0, 0.5)),
    SanaSprint(guidance=1.5, tangent_warmup=0),
]


@pytest.mark.parametrize("objective", METHODS, ids=lambda o: type(o).__name__)
def test_a_step_on_a_pipeline_moves_what_it_should(any_step: AnyStepPipeline, objective: Any) -> None:
    student = any_step.network.eval()
    teacher = copy.deepcopy(student).requires_grad_(False)
    x = seeded_noise(any_step.latent_shape, range(3)) * 0.7
    cond, uncond = any_step.encode_prompts(PROMPTS), any_step.encode_prompts([""])
    networks: dict[str, nn.Module] = {}
    specs = objective.networks()
    for name, spec in specs.items():
        if spec.kind == "new":
            of = networks.get(spec.features_of, teacher)
            one = of.features(x[:1], torch.ones(1), cond.take(torch.tensor([0]))) if spec.features_of else []
            torch.manual_seed(0)
            networks[name] = spec.build(one)
        else:
            networks[name] = copy.deepcopy(student).requires_grad_(spec.trained)
    trained = {STUDENT: list(student.parameters())} | {
        name: list(networks[name].parameters()) for name, spec in specs.items() if spec.trained
    }
    everyone = {STUDENT: student, "frozen": teacher, **networks}
    given = {"networks": networks} if networks else {}
    for at in range(2):
        phase = objective.begin(at, 2)
        before = {name: copy.deepcopy(network.state_dict()) for name, network in everyone.items()}
        with only_trained(trained, phase.trains):
            step = objective.step(
                student,
                x,
                cond,
                uncond=uncond,
                teacher=teacher,
                generator=torch.Generator().manual_seed(at),
                **given,
            )
            step.loss.backward()
        for name in phase.trains:
            torch.optim.SGD(trained[name], lr=0.1).step()
        for name, network in everyone.items():
            moved = [
                key
                for key, value in network.state_dict().items()
                if not torch.equal(value, before[name][key])
            ]
            assert bool(moved) == (name in phase.trains), (name, phase)
            network.zero_grad()


def test_forward_mode_agrees_with_a_finite_difference_on_a_pipeline(any_step: AnyStepPipeline) -> None:
    x = seeded_noise(any_step.latent_shape, range(3))
    cond = any_step.encode_prompts(PROMPTS)
    network = any_step.network.double()
    found = []
    for mode in ("forward", "finite"):
        objective = SCM(
            source="data",
            tangent_warmup=0,
            derivative=mode,
            delta=1e-4,
            adaptive_weighting=False,  # type: ignore[arg-type]
        )
        step = objective.step(network, x.double(), cond, generator=torch.Generator().manual_seed(0))
        found.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(step.loss, list(network.parameters()))])
        )
    cosine = torch.nn.functional.cosine_similarity(*found, dim=0)
    assert cosine > 0.9999
