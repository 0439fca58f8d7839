"""How often networks are called, and on how many rows: only rows that matter, in as few calls as possible."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from twinflow.objectives import RCGM, Step, TwinFlow
from twinflow.objectives.presets import preset

from .toys import Recorder, ToyField, batch, seeded

PAPER = preset("twinflow", "paper")  # as many jumps as its order


def record(
    objective: TwinFlow, rows: int, *, seed: int = 0, **kwargs: Any
) -> tuple[Step, Recorder, Recorder]:
    student, teacher = Recorder(ToyField(1)), Recorder(ToyField(2))
    x, cond, uncond = batch(rows)
    kwargs = {"uncond": uncond, "teacher": teacher, **kwargs}
    step = objective.step(student, x, cond, generator=seeded(seed), **kwargs)
    return step, student, teacher


@pytest.mark.parametrize("seed", range(10))
def test_self_teacher_takes_four_calls_and_at_most_four_and_a_quarter_rows_each(seed: int) -> None:
    _, student, teacher = record(TwinFlow(**PAPER | {"teacher": "self"}), 8, seed=seed)
    assert len(student.calls) == 4
    assert len(teacher.calls) == 0
    assert student.rows <= 4.25 * 8
    assert student.grad_rows == 8


@pytest.mark.parametrize(
    ("settings", "student_calls", "teacher_calls"),
    [
        ({"teacher": "self"}, 4, 0),
        ({"teacher": "ema"}, 3, 3),
        ({"teacher": "frozen", "guidance": 1.5}, 4, 1),
        ({"teacher": "self", "order": 1}, 3, 0),
        ({"teacher": "self", "order": 3}, 5, 0),
        ({"teacher": "self", "longest_jump": 0.25}, 6, 0),
        (preset("twinflow", "tuned"), 6, 1),
        ({"teacher": "self", "guidance": 0.0}, 4, 0),
        ({"teacher": "ema", "guidance": 0.0}, 3, 2),
        ({"teacher": "self", "rectify": 0.0}, 4, 0),
        ({"teacher": "ema", "rectify": 0.0}, 2, 3),
        ({"teacher": "self", "image_free": True}, 5, 0),
        ({"teacher": "ema", "image_free": True}, 3, 3),
        ({"teacher": "frozen", "image_free": True, "guidance": 4.0}, 4, 1),
    ],
)
def test_number_of_calls(settings: dict[str, Any], student_calls: int, teacher_calls: int) -> None:
    _, student, teacher = record(TwinFlow(**PAPER | settings), 8)
    assert (len(student.calls), len(teacher.calls)) == (student_calls, teacher_calls)


def test_each_call_holds_exactly_its_rows() -> None:
    objective = TwinFlow(**PAPER | {"teacher": "self"})
    step, student, _ = record(objective, 16)
    g, roles = step.rows.t - step.rows.r, step.rows.roles
    jumping = sum(role != "fake" and gap >= 0.01 for role, gap in zip(roles, g.tolist(), strict=True))
    guided = sum(role in ("tangent", "any_step") for role in roles)
    assert [call[0].shape[0] for call in student.calls] == [4 + 2 * guided, 16, jumping + 2 * 4, jumping]
    assert guided == 8


def test_rows_on_average_are_those_of_the_derivation() -> None:
    # .25 generated, 1 guidance, 2 x .6055 jumps, .5 rectification, and the forward with gradient.
    objective, rows = TwinFlow(**PAPER | {"teacher": "self"}), 0
    for seed in range(50):
        _, student, _ = record(objective, 64, seed=seed)
        rows += student.rows
    assert rows / (50 * 64) == pytest.approx(0.25 + 1 + 2 * 0.6055 + 0.5 + 1, abs=0.02)


def test_our_defaults_take_half_a_row_more_for_the_jumps_beyond_half_the_way() -> None:
    rows = 0
    for seed in range(50):
        _, student, teacher = record(TwinFlow(), 64, seed=seed)
        rows += student.rows + teacher.rows
    # A third jump where t - r - delta > 0.5, a fourth where it is > 0.75: all one_step rows, and of the any_step ones,
    # where t and r / t are uniform, P(t - r > a) = 1 - a + a ln a.
    far = [0.25 + 0.25 * (1 - a + a * math.log(a)) for a in (0.51, 0.76)]
    assert rows / (50 * 64) == pytest.approx(0.25 + 1 + 2 * 0.6055 + 0.5 + 1 + sum(far), abs=0.02)


def test_a_call_without_rows_is_skipped_unless_in_lockstep() -> None:
    tangent_only: dict[str, Any] = {
        "longest_jump": None,
        "roles": {"tangent": 1},
        "tangent_gap": 0.0,
        "teacher": "ema",
        "guidance_range": (0, 1e-9),
    }
    _, student, teacher = record(TwinFlow(**tangent_only), 3)
    assert (len(student.calls), len(teacher.calls)) == (1, 0)
    _, student, teacher = record(TwinFlow(**tangent_only, lockstep=True), 3)
    assert (student.rows, teacher.rows) == (3, 3)  # guidance and two jumps, one made-up row each


@pytest.mark.parametrize("teacher", ["self", "ema", "frozen"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"image_free": True},
        {"longest_jump": None},
        {"guidance": 0.0},
        {"roles": {"fake": 1}},
    ],
    ids=str,
)
def test_lockstep_makes_the_same_calls_in_every_step(teacher: str, more: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"teacher": teacher} | more
    objective, counts = TwinFlow(**settings, lockstep=True), set()
    for seed in range(8):  # one row a step: every role comes, and no step has rows for all calls
        step, student, frozen = record(objective, 1, seed=seed)
        counts.add((len(student.calls), len(frozen.calls)))
        assert torch.isfinite(step.loss)
    _, student, frozen = record(TwinFlow(**settings), 8)  # with a one_step row, which makes the most jumps
    assert counts == {(len(student.calls), len(frozen.calls))}


def test_rows_make_as_many_jumps_as_their_way_takes() -> None:
    objective = TwinFlow(teacher="self", longest_jump=0.25, rectify=0.0)
    step, student, _ = record(objective, 32)
    way = (step.rows.t - step.rows.r - 0.01)[[role != "fake" for role in step.rows.roles]]
    way = way[way >= 0]
    made = (way / 0.25).ceil().clamp(min=2)
    assert made.max() == 4  # of the one_step rows
    assert [call[0].shape[0] for call in student.calls[2:]] == [int((made > j).sum()) for j in range(4)]


def test_a_student_that_is_its_frozen_teacher_has_no_field_left_to_learn() -> None:
    """The law of ``velocity="field"``; data leave the scatter of z - x in the loss."""
    tangent: dict[str, Any] = {"roles": {"tangent": 1}, "tangent_gap": 0.0, "loss": "l2", "teacher": "frozen"}
    field = ToyField(1)
    x, cond, _ = batch(8)
    losses = {
        velocity: TwinFlow(**tangent, guidance=0.0, velocity=velocity)
        .step(field, x, cond, teacher=field, generator=seeded())
        .loss
        for velocity in ("field", "data")
    }
    assert losses["field"] == 0
    assert losses["data"] > 0.1


def test_lockstep_changes_no_number() -> None:
    for seed in range(4):
        plain, _, _ = record(TwinFlow(), 3, seed=seed)
        lockstep, _, _ = record(TwinFlow(lockstep=True), 3, seed=seed)
        assert torch.equal(plain.loss, lockstep.loss)


def test_no_row_is_asked_for_in_vain() -> None:
    """Regression: the source guided fake and one-step rows, and integrated over fake and zero-length rows."""
    objective = TwinFlow(teacher="frozen")
    _, student, teacher = record(objective, 32)
    (call,) = teacher.calls
    assert ((call[1] > 0) & (call[1] < 1)).all()
    for _, t, r, _ in student.calls[3:]:
        assert (t > 0).all()
        assert (t >= r).all()
    t, r = student.calls[2][1][:-16], student.calls[2][2][:-16]  # jumps, before the 2 x 8 rectification rows
    assert (t >= r).all()


def test_without_guidance_only_rows_that_follow_the_field_ask_for_it() -> None:
    objective = TwinFlow(teacher="self", velocity="field", guidance=0.0)
    step, student, _ = record(objective, 32)
    pairs = zip(step.rows.roles, (step.rows.t - step.rows.r).tolist(), strict=True)
    following = sum(role in ("one_step", "any_step") and way >= 0.01 for role, way in pairs)
    assert student.calls[0][0].shape[0] == step.rows.roles.count("fake") + following


def test_single_role_recipes_take_only_their_calls() -> None:
    _, student, teacher = record(TwinFlow(roles={"fake": 1}, teacher="ema"), 4)
    assert ([c[0].shape[0] for c in student.calls], teacher.calls) == ([4, 4], [])
    _, student, teacher = record(TwinFlow(roles={"one_step": 1}, teacher="ema", longest_jump=None), 4)
    assert [c[0].shape[0] for c in student.calls] == [4, 8]
    assert [c[0].shape[0] for c in teacher.calls] == [4, 4]
    _, student, teacher = record(RCGM(guidance=0.0, teacher="ema"), 4)
    assert [c[0].shape[0] for c in student.calls] == [4]


@pytest.mark.parametrize("make", [lambda c: c, lambda c: {"text": c}], ids=["tensor", "dict"])
def test_one_or_b_unconditional_rows(make: Any) -> None:
    x, cond, uncond = batch(6)
    field, losses = ToyField(1), []
    for rows in (uncond, uncond.expand(6, -1)):
        step = TwinFlow(teacher="self").step(field, x, make(cond), uncond=make(rows), generator=seeded())
        losses.append(step.loss.item())
    assert losses[0] == losses[1]


def test_unconditional_model() -> None:
    def field(x_t, t, r, cond):
        assert cond is None
        return x_t * t[:, None].cos()

    x = torch.randn(4, 3, requires_grad=True)
    step = TwinFlow(teacher="self", guidance=0.0).step(field, x, None, generator=seeded())
    assert torch.isfinite(step.loss)


def test_the_loss_does_not_depend_on_how_rows_are_split_into_micro_batches() -> None:
    """The mean over micro-batches of one row, with their share of roles, is the loss of the whole batch."""
    from twinflow.objectives.draws import Draws
    from twinflow.objectives.queries import Evaluator
    from twinflow.objectives.times import TimeDistribution

    x, cond, uncond = batch(8)
    field, objective = ToyField(1), TwinFlow(teacher="self")
    networks = {"student": field, "guide": field, "jumper": field}
    roles = torch.tensor([0, 1, 2, 3, 2, 3, 0, 1])
    draws = Draws.sample(x, time=TimeDistribution(), inner_nodes=1, generator=seeded())

    def loss(rows: slice) -> torch.Tensor:
        part = Draws(**{k: (v[:, rows] if k == "nodes" else v[rows]) for k, v in vars(draws).items()})
        ask = Evaluator(cond=cond[rows], uncond=uncond, state_dtype=x.dtype)
        return objective._loss(x[rows], ask, roles=roles[rows], draws=part, **networks).loss

    whole = loss(slice(0, 8))
    singles = torch.stack([loss(slice(i, i + 1)) for i in range(8)]).mean()
    torch.testing.assert_close(singles, whole, rtol=1e-12, atol=0)
