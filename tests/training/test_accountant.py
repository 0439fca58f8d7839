"""The accountant counts what happens: calls, rows, operations, memory; budgets and resumes are exact."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from objectives.test_networks import made
from objectives.toys import FeatureToyField, ToyField, batch
from twinflow.errors import TwinflowError
from twinflow.objectives import (
    DMD,
    DMD2,
    SCM,
    ConsistencyDistillation,
    ConsistencyTraining,
    MeanFlow,
    ProgressiveDistillation,
    SanaSprint,
    TwinFlow,
)
from twinflow.training.accountant import Accountant, Budget, Holdings


class Linear(nn.Module):
    """F = W [x, t, r] + b on states (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: object) -> Tensor:
        return self.layer(torch.cat([x_t, t[:, None], r[:, None]], dim=1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FORWARD = 2 * 8 * 6  # operations of one row


def test_twinflow_makes_four_calls_on_at_most_four_and_a_quarter_rows_an_image() -> None:
    accountant, objective = (
        Accountant(),
        TwinFlow(
            teacher="self", longest_jump=None, roles={"one_step": 1, "any_step": 1, "tangent": 1, "fake": 1}
        ),
    )
    field = accountant.field("student", Linear())
    x, uncond = torch.randn(400, 6, generator=seeded()), torch.zeros(1, 1)
    for at in range(2):
        with accountant.step("student", images=400):
            cond = torch.zeros(400, 1)
            objective.step(field, x, cond, uncond=uncond, generator=seeded(at)).loss.backward()
    tally = accountant.phases["student"].networks["student"]
    assert (tally.calls, tally.grad_calls, tally.grad_rows) == (8, 2, 800)
    per_image = accountant.per_image()
    assert per_image["calls_per_step"] == 4
    assert per_image["backwards"] == 1
    # 1 with gradient; without: 1/4 fake, 2/2 guided, 2/4 re-noised, and twice at most 3/4 jumping.
    assert 3.6 < per_image["forwards"] <= 4.25
    expected = (
        1 + 0.25 + 1.0 + 0.5 + 2 * (0.25 + 0.25 * (1 - 0.522) + 0.25 * (1 - 0.056))
    )  # METHOD: P(g < delta)
    assert per_image["forwards"] == pytest.approx(expected, abs=0.1)


def test_operations_are_those_of_the_formula() -> None:
    field = Linear()
    x = torch.randn(10, 6, generator=seeded())

    def flops(work) -> int:
        accountant = Accountant()
        counted = accountant.field("student", field)
        with accountant.step("student", images=10):
            work(counted)
        return int(accountant.total("flops"))

    t = torch.ones(10)
    with torch.no_grad():
        assert flops(lambda f: f(x, t, t, None)) == 10 * FORWARD
    # The gradient of the weights costs another forward; that of the input is not asked for.
    assert flops(lambda f: f(x, t, t, None).sum().backward()) == 2 * 10 * FORWARD
    # By forward mode: the output, its change with the input, and, as torch does it, with the constant weights.
    objective = MeanFlow(jumping=1.0, derivative="forward")
    assert flops(lambda f: objective.step(f, x, None, generator=seeded()).loss.backward()) == 5 * 10 * FORWARD
    finite = MeanFlow(jumping=1.0, derivative="finite")
    assert flops(lambda f: finite.step(f, x, None, generator=seeded()).loss.backward()) == 3 * 10 * FORWARD


def test_attention_is_counted_as_on_a_gpu() -> None:
    """Two products of 5 x 5 places and 8 channels; backward five."""
    heads = [torch.randn(2, 3, 5, 8, generator=seeded(i)).requires_grad_() for i in range(3)]
    for gradient, products in ((False, 2), (True, 7)):
        accountant = Accountant()
        with accountant.step("student", images=2), torch.set_grad_enabled(gradient):
            out = nn.functional.scaled_dot_product_attention(*heads)
            if gradient:
                out.sum().backward()
        assert accountant.total("flops") == products * 2 * (2 * 3 * 5 * 5 * 8)


def test_phases_are_kept_apart_and_multiplied() -> None:
    accountant, objective = Accountant(), DMD()
    student, teacher, fake = Linear(), Linear().requires_grad_(False), Linear()
    fields = {
        name: accountant.field(name, network)
        for name, network in (("student", student), ("teacher", teacher), ("fake_score", fake))
    }
    x = torch.randn(10, 6, generator=seeded())
    for at in range(6):
        phase = objective.begin(at, 6)
        with accountant.step(phase.name, images=10):
            objective.step(
                fields["student"],
                x,
                None,
                teacher=fields["teacher"],
                networks={"fake_score": fields["fake_score"]},
                generator=seeded(at),
            ).loss.backward()
    critic, own = accountant.phases["critic"], accountant.phases["student"]
    assert (critic.steps, own.steps) == (3, 3)
    assert (critic.networks["student"].rows, critic.networks["student"].grad_rows) == (30, 0)
    assert (critic.networks["fake_score"].grad_rows, critic.networks["teacher"].rows) == (30, 0)
    assert (own.networks["student"].grad_rows, own.networks["teacher"].rows) == (30, 30)
    assert (own.networks["fake_score"].rows, own.networks["fake_score"].grad_rows) == (30, 0)
    assert critic.flops_per_step == 3 * 10 * FORWARD  # sample, fake score and its gradient
    assert own.flops_per_step == 4 * 10 * FORWARD  # student and its gradient, teacher, fake score
    assert accountant.total("flops") == 3 * (critic.flops_per_step + own.flops_per_step)
    assert accountant.total("rows") == 30 + 30 + 30 + 30 + 30
    assert accountant.total("images") == 60


@pytest.mark.parametrize(
    "objective",
    [
        TwinFlow(teacher="self"),
        ConsistencyTraining(start_intervals=10, final_intervals=80),
        ConsistencyDistillation(guidance=1.0),
        SCM(guidance=1.0, tangent_warmup=10),
        MeanFlow(guidance=0.5),
        ProgressiveDistillation(start_steps=8, guidance=1.0),
        DMD(guidance=1.0),
        DMD2(guidance=1.0, critic_steps=2, head_width=4),
        SanaSprint(guidance=1.0, tangent_warmup=10, head_width=4),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_the_first_step_of_a_phase_stands_for_the_others(objective: Any) -> None:
    """Or budgets in operations are not equal. Within what random numbers of rows change."""
    x, cond, uncond = batch(64)
    student, teacher = ToyField(1), FeatureToyField(2).requires_grad_(False)
    networks, total = made(objective, student, teacher), 24
    costs: dict[str, list[int]] = {}
    for at in range(total):
        phase, accountant = objective.begin(at, total), Accountant()
        fields = {
            name: network if objective.networks()[name].kind == "new" else accountant.field(name, network)
            for name, network in networks.items()
        }
        with accountant.step(phase.name, images=len(x)):
            objective.step(
                accountant.field("student", student),
                x,
                cond,
                uncond=uncond,
                teacher=accountant.field("teacher", teacher),
                generator=seeded(at),
                **({"networks": fields} if fields else {}),
            ).loss.backward()
        costs.setdefault(phase.name, []).append(int(accountant.total("flops")))
    for name, of_phase in costs.items():
        assert of_phase[0] == pytest.approx(mean(of_phase), rel=0.1), name


def test_a_budget_is_reached_in_any_unit_and_survives_a_resume() -> None:
    def spend(accountant: Accountant, steps: int) -> None:
        field = accountant.field("student", Linear())
        for _ in range(steps):
            with accountant.step("student", images=4), torch.no_grad():
                field(torch.zeros(4, 6), torch.ones(4), torch.ones(4), None)

    straight, first = Accountant(), Accountant()
    spend(straight, 5)
    spend(first, 2)
    second = Accountant()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    spend(second, 3)
    for unit, amount in (("steps", 5), ("images", 20), ("rows", 20), ("flops", 20 * FORWARD)):
        assert straight.total(unit) == second.total(unit) == amount
        assert second.exhausted(Budget(unit=unit, amount=amount))
        assert not second.exhausted(Budget(unit=unit, amount=amount + 1))
    with pytest.raises(TwinflowError, match=r"budget\.unit = 'hours' is not known"):
        Budget(unit="hours", amount=1)  # type: ignore[arg-type]
    with pytest.raises(TwinflowError, match="positive"):
        Budget(unit="steps", amount=0)


def test_seconds_are_those_of_the_clock() -> None:
    accountant = Accountant()
    began = time.monotonic()
    with accountant.step("student", images=1):
        torch.randn(300, 300) @ torch.randn(300, 300)
    assert 0 < accountant.total("seconds") <= time.monotonic() - began


HELD_FOR_A_MOMENT = """
import torch
from twinflow.training.accountant import Accountant
accountant = Accountant()
before = accountant.peak_memory()
held = torch.ones(64, 1024, 1024, dtype=torch.uint8)  # 64 MiB
del held
print(accountant.peak_memory() - before)
"""


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    """In a process of its own: the system's high-water mark is that of all tests that this one has run."""
    run = subprocess.run(
        [sys.executable, "-c", HELD_FOR_A_MOMENT], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) > 48 * 2**20


def test_holdings_count_what_is_shared_once() -> None:
    student, teacher = Linear(), Linear().requires_grad_(False)
    borrowed = nn.Sequential(student.layer, nn.Linear(6, 1, bias=False).requires_grad_(False))
    optimiser = torch.optim.AdamW(student.parameters())
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    states = [v for state in optimiser.state.values() for v in state.values() if v.dim() > 0]
    found = Holdings.of([student, teacher, borrowed], student.parameters(), states)
    assert found == Holdings(trained=54, frozen=54 + 6, parameter_bytes=4 * 114, optimizer_bytes=2 * 4 * 54)
