"""What objectives declare: networks, phases, schedules of the step; and that gradients go only there."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn

from twinflow.objectives import (
    DMD,
    DMD2,
    RCGM,
    SCM,
    STUDENT,
    ConsistencyDistillation,
    ConsistencyTraining,
    FlowMatching,
    MeanFlow,
    NetworkSpec,
    ProgressiveDistillation,
    SanaSprint,
    TwinFlow,
    only_trained,
)

from .toys import FeatureToyField, Recorder, ToyField, batch, seeded

ALL: list[Any] = [
    FlowMatching(),
    TwinFlow(teacher="self"),
    RCGM(teacher="self"),
    ConsistencyTraining(start_intervals=5),
    ConsistencyTraining(target_decay=0.9),
    ConsistencyDistillation(guidance=1.0),
    SCM(guidance=1.0),
    SCM(source="data", adaptive_weighting=False),
    MeanFlow(guidance=0.5),
    ProgressiveDistillation(start_steps=4, guidance=1.0),
    DMD(guidance=1.0),
    DMD2(guidance=1.0, critic_steps=2),
    DMD2(gan_generator=0.0, gan_critic=0.0, times=(1.0,)),
    SanaSprint(guidance=1.0),
]


def made(objective: Any, student: nn.Module, teacher: nn.Module) -> dict[str, nn.Module]:
    """The networks of an objective, as a loop of one's own would make them."""
    found: dict[str, nn.Module] = {}
    x, cond, _ = batch(1)
    for seed, (name, spec) in enumerate(objective.networks().items()):
        if spec.kind == "new":
            of = found.get(spec.features_of, teacher)
            features = of.features(x, torch.ones(1, dtype=x.dtype), cond) if spec.features_of else []
            torch.manual_seed(seed)
            found[name] = spec.build(features).double()
        else:
            found[name] = FeatureToyField(10 + seed)
    return found


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_a_step_gives_gradients_to_the_networks_of_its_phase_and_to_no_others(objective: Any) -> None:
    x, cond, uncond = batch(8)
    student, teacher = ToyField(1), FeatureToyField(2).requires_grad_(False)
    networks = made(objective, student, teacher)
    for name, spec in objective.networks().items():
        networks[name].requires_grad_(spec.trained)
    everyone = {STUDENT: student, "teacher": teacher, **networks}
    trained = {
        name: [p for p in network.parameters() if p.requires_grad]
        for name, network in everyone.items()
        if name == STUDENT or (name in networks and objective.networks()[name].trained)
    }
    seen = set()
    for at in range(6):
        phase = objective.begin(at, 6)
        seen |= set(phase.trains)
        given = {"networks": networks} if networks else {}
        with only_trained(trained, phase.trains):
            step = objective.step(
                student, x, cond, uncond=uncond, teacher=teacher, generator=seeded(at), **given
            )
            step.loss.backward()
        assert step.loss.isfinite()
        assert len(step.rows.roles) == len(step.rows.t) == len(step.rows.r) == len(step.rows.loss) == 8
        assert step.losses
        assert not any(loss.requires_grad for loss in step.losses.values())
        for name, network in everyone.items():
            grads = [p.grad for p in network.parameters()]
            if name in phase.trains:
                assert all(g is not None for g in grads), name
                if (
                    at > 0
                ):  # sCM's tangent is off in the first step of the warm-up, as w is the same everywhere
                    assert any(g.abs().max() > 0 for g in grads), name
            else:
                assert all(g is None for g in grads), name
            network.zero_grad()
    assert seen == set(trained)


def test_the_same_seed_is_the_same_step_and_nothing_given_is_changed() -> None:
    x, cond, uncond = batch(8)
    for objective in ALL:
        student, teacher = ToyField(1), FeatureToyField(2)
        networks = made(objective, student, teacher)
        given = {"networks": networks} if networks else {}
        before = [t.clone() for t in (x, cond, uncond)]
        state = objective.state_dict()
        losses = []
        for _ in range(2):
            objective.load_state_dict(state)
            objective.begin(2, 6)
            losses.append(
                objective.step(
                    student, x, cond, uncond=uncond, teacher=teacher, generator=seeded(3), **given
                ).loss
            )
        assert torch.equal(*losses), type(objective).__name__
        assert all(torch.equal(a, b) for a, b in zip(before, (x, cond, uncond), strict=True))


@pytest.mark.parametrize(
    "objective",
    [
        *ALL[:6],
        SCM(guidance=1.0, derivative="finite"),
        MeanFlow(guidance=0.5, derivative="finite"),
        ProgressiveDistillation(start_steps=4),
    ],
    ids=lambda o: type(o).__name__,
)
def test_the_log_has_the_times_that_the_student_is_asked_for(objective: Any) -> None:
    x, cond, uncond = batch(8)
    student, teacher = Recorder(ToyField(1)), FeatureToyField(2)
    networks = made(objective, student.inner, teacher)
    given = {"networks": networks} if networks else {}
    objective.begin(3, 6)
    rows = objective.step(student, x, cond, uncond=uncond, teacher=teacher, generator=seeded(), **given).rows
    asked = [(t, r) for _, t, r, _ in student.calls if len(t) == 8]
    assert any(torch.allclose(t, rows.t, atol=0) and torch.allclose(r, rows.r, atol=1e-15) for t, r in asked)


def test_every_objective_refuses_what_is_no_batch() -> None:
    """Regression: flow matching took conditions of another number of rows, and a network may broadcast one row."""
    x, cond, uncond = batch(8)
    for objective in ALL:
        student, teacher = ToyField(1), FeatureToyField(2)
        networks = made(objective, student, teacher)
        given = {"networks": networks} if networks else {}
        objective.begin(1, 6)
        for wrong, message in (
            ((x, cond[:7]), "cond must have one row for each of the 8 rows of x, got 7"),
            ((x[:0], cond[:0]), "at least one row"),
            ((x.long(), cond), "floating point"),
        ):
            with pytest.raises(ValueError, match=message):
                objective.step(student, *wrong, uncond=uncond, teacher=teacher, **given)


def phases(objective: Any, total: int) -> list[tuple[str, ...]]:
    return [objective.begin(at, total).trains for at in range(total)]


def test_the_critic_makes_its_steps_before_each_of_the_student() -> None:
    for objective, turns in ((DMD(), 1), (DMD2(), 5), (DMD2(critic_steps=3), 3)):
        runs = [
            (names, len(list(steps)))
            for names, steps in groupby(phases(objective, 4 * (turns + 1)), key=lambda t: t == (STUDENT,))
        ]
        assert runs == [(False, turns), (True, 1)] * 4
    assert phases(SanaSprint(), 4) == [(STUDENT, "weighting"), ("discriminator",)] * 2


def test_the_grid_of_consistency_training_doubles_in_equal_parts_of_the_run() -> None:
    objective = ConsistencyTraining()
    counts = []
    for at in range(8000):
        objective.begin(at, 8000)
        counts.append(objective.intervals)
    runs = [(count, len(list(steps))) for count, steps in groupby(counts)]
    assert runs == [(10 * 2**i, 1000) for i in range(8)]


def test_the_student_becomes_the_teacher_at_the_end_of_each_stage_and_only_then() -> None:
    objective = ProgressiveDistillation(start_steps=8)
    changes, counts = [], []
    for at in range(600):
        phase = objective.begin(at, 600)
        assert phase.trains == (STUDENT,)
        changes += [at] if phase.refresh else []
        assert phase.refresh in ((), ("teacher",))
        counts.append(objective.steps)
    # 8 and 4 steps for one part of the run each, 2 and 1 for two parts each.
    assert [(n, len(list(steps))) for n, steps in groupby(counts)] == [(8, 100), (4, 100), (2, 200), (1, 200)]
    assert changes == [100, 200, 400]


def test_stages_end_at_the_last_count_and_share_the_run_evenly_if_asked() -> None:
    for settings, expected in (
        ({"start_steps": 1}, [(1, 600)]),
        ({"start_steps": 8, "final_steps": 2}, [(8, 150), (4, 150), (2, 300)]),
        ({"start_steps": 8, "last_stages_longer": False}, [(8, 150), (4, 150), (2, 150), (1, 150)]),
    ):
        objective, counts = ProgressiveDistillation(**settings), []
        for at in range(600):
            objective.begin(at, 600)
            counts.append(objective.steps)
        assert [(n, len(list(steps))) for n, steps in groupby(counts)] == expected


def test_the_warm_up_of_the_tangent_is_a_function_of_the_step() -> None:
    objective = SCM(tangent_warmup=100)
    for at, rho in ((0, 0.0), (25, 0.25), (100, 1.0), (500, 1.0)):
        objective.begin(at, 1000)
        assert objective.warmup == rho
    assert SCM(tangent_warmup=0).warmup == 1.0
    objective = SCM(tangent_warmup=1)
    assert [objective.begin(at, 3) and objective.warmup for at in range(3)] == [0.0, 1.0, 1.0]


def test_missing_parts_are_named() -> None:
    x, cond, uncond = batch(4)
    field, teacher = ToyField(1), FeatureToyField(2)
    with pytest.raises(ValueError, match="learns from a frozen teacher"):
        DMD().step(field, x, cond)
    with pytest.raises(ValueError, match="DMD needs the network 'fake_score'"):
        DMD().step(field, x, cond, teacher=teacher)
    with pytest.raises(ValueError, match=r"guidance = 2\.0 needs an unconditional condition"):
        DMD(guidance=2.0).step(field, x, cond, teacher=teacher)
    networks = {"discriminator": nn.Identity(), "weighting": nn.Identity()}
    objective = SanaSprint()
    objective.begin(1, 2)
    with pytest.raises(ValueError, match="has no features"):
        objective.step(field, x, cond, uncond=uncond, teacher=field, networks=networks)
    with pytest.raises(ValueError, match=r"step must be in \[0, total\)"):
        DMD().begin(3, 3)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ConsistencyTraining, {"start_intervals": 20, "final_intervals": 10}, "start_intervals must be in"),
        (ConsistencyTraining, {"huber_c": 0.0}, "huber_c must be positive"),
        (ConsistencyTraining, {"weighting": "snr"}, "weighting must be"),
        (ConsistencyDistillation, {"intervals": 0}, "intervals must be a whole number"),
        (ConsistencyDistillation, {"solver": "rk4"}, "solver must be"),
        (ConsistencyDistillation, {"target_decay": 1.0}, "target_decay must be"),
        (SCM, {"source": "both"}, "source must be"),
        (SCM, {"source": "data", "guidance": 1.0}, "guidance must be 0"),
        (SCM, {"tangent_c": 0.0}, "tangent_c must be positive"),
        (SCM, {"derivative": "reverse"}, "derivative must be one of"),
        (MeanFlow, {"jumping": 1.5}, "jumping must be"),
        (MeanFlow, {"guidance": 1.0}, r"guidance must be in \[0, 1\)"),
        (MeanFlow, {"delta": 0.0}, "delta must be"),
        (ProgressiveDistillation, {"start_steps": 12}, "power of 2"),
        (ProgressiveDistillation, {"weighting": "snr"}, "weighting must be"),
        (DMD, {"time_range": (0.0, 1.0)}, "time_range must be"),
        (DMD, {"critic_steps": 0}, "critic_steps must be"),
        (DMD, {"guidance": -1.0}, "guidance must be finite"),
        (DMD2, {"times": (0.5, 0.5)}, "times must fall"),
        (DMD2, {"times": (1.5, 0.5)}, "times must fall from at most 1"),
        (DMD2, {"times": (1.0, 0.0)}, "to above 0"),
        (DMD2, {"times": ()}, "times must fall"),
        (DMD2, {"gan_generator": -1.0}, "gan_generator and gan_critic"),
        (SanaSprint, {"source": "data"}, "source must be 'teacher'"),
        (SanaSprint, {"max_time": 2.0}, "max_time must be"),
        (SanaSprint, {"max_time": -0.1}, "max_time must be"),
        (SanaSprint, {"adversarial": -0.1}, "adversarial must be"),
        (SCM, {"tangent_warmup": -1}, "tangent_warmup at least 0"),
        (NetworkSpec, {"kind": "frozen"}, "kind must be one of"),
        (NetworkSpec, {"kind": "trained", "decay": 0.5}, "decay must be"),
        (NetworkSpec, {"kind": "new"}, "needs build"),
        (NetworkSpec, {"kind": "trained", "lr": 0.0}, "lr must be"),
    ],
)
def test_bad_settings_are_named(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_freezing_ends_with_the_block_even_after_an_error() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    parameters = {"one": list(one.parameters()), "other": list(other.parameters())}

    def fail() -> None:
        with only_trained(parameters, ["one"]):
            assert one.weight.requires_grad
            assert not other.weight.requires_grad
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert other.weight.requires_grad
    with pytest.raises(ValueError, match="no trained network third"), only_trained(parameters, ["third"]):
        pass
