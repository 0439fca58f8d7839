"""What an objective asks of its networks, counted without any: calls, rows, and which phase comes how often."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor, nn

from twinflow.objectives import STUDENT, Phase
from twinflow.pipelines.features import TAPS

CYCLE = 60  # steps that are made: rows depend on random times, and most cycles of phases divide it
TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Network calls of an objective's step, on average."""

    calls: float
    rows: float  # without gradient, per row of the batch
    teacher_rows: float  # of these, of the teacher

    @classmethod
    def mean(cls, phases: Sequence[Counted]) -> Schedule:
        """Of all steps together."""
        return cls(
            calls=sum(phase.schedule.calls * phase.share for phase in phases),
            rows=sum(phase.schedule.rows * phase.share for phase in phases),
            teacher_rows=sum(phase.schedule.teacher_rows * phase.share for phase in phases),
        )


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The steps of one phase, and of them the one with the largest call."""

    phase: Phase
    share: float  # of all steps
    schedule: Schedule
    step: int
    state: dict[str, int]  # of the objective before that step
    random: Tensor  # state of the generator, likewise

    def begin(self, objective: Any) -> Generator:
        """Put ``objective`` before that step; the generator that it was made with."""
        objective.load_state_dict(self.state)
        objective.begin(self.step, CYCLE)
        generator = Generator()
        generator.set_state(self.random)
        return generator


def count_steps(objective: Any, batch: int) -> list[Counted]:
    """Make :data:`CYCLE` steps of ``batch`` rows; what each phase asks for, by its name."""
    counted = copy.deepcopy(objective)
    generator = Generator().manual_seed(0)
    found: dict[str, list[tuple[list[_Asked], Counted]]] = {}
    for step in range(CYCLE):
        state, random = counted.state_dict(), generator.get_state()
        phase = counted.begin(step, CYCLE)
        calls: list[_Asked] = []
        fields = {name: _CountingField(name, name in phase.trains, calls) for name in networks_of(counted)}
        make_step(counted, torch.zeros(batch, 1), fields | _new_modules(counted), generator)
        means = Schedule(
            calls=len(calls),
            rows=sum(call.rows for call in calls if not call.gradient) / batch,
            teacher_rows=sum(call.rows for call in calls if call.name == TEACHER and not call.gradient)
            / batch,
        )
        entry = Counted(phase=phase, share=1 / CYCLE, schedule=means, step=step, state=state, random=random)
        found.setdefault(phase.name, []).append((calls, entry))
    return [_worst(entries) for entries in found.values()]


def networks_of(objective: Any) -> list[str]:
    """The transformers that ``objective`` asks: the student, its teacher, and the copies that it declares."""
    teacher = [TEACHER] if getattr(objective, "teacher", "self") != "self" else []
    return [STUDENT, *teacher, *(name for name, spec in objective.networks().items() if spec.kind != "new")]


def make_step(objective: Any, x: Tensor, networks: Mapping[str, Any], generator: Generator) -> Any:
    """One step on the data ``x`` (B, …), with stand-ins for all ``networks``."""
    rows = torch.arange(x.shape[0])
    declared = {name: networks[name] for name in objective.networks()}
    return objective.step(
        networks[STUDENT],
        x,
        rows,
        uncond=rows[:1],
        teacher=networks.get(TEACHER),
        generator=generator,
        **({"networks": declared} if declared else {}),
    )


@dataclass(frozen=True)
class _Asked:
    name: str
    rows: int
    gradient: bool


@dataclass
class _CountingField:
    """Notes what it is asked, and answers with zeros."""

    name: str
    trained: bool
    calls: list[_Asked] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        return torch.zeros_like(x_t).requires_grad_(self._note(x_t))

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
        wanted = self._note(x_t)
        return [torch.zeros(x_t.shape[0], 1, 1).requires_grad_(wanted) for _ in range(TAPS)]

    def _note(self, x_t: Tensor) -> bool:
        gradient = torch.is_grad_enabled() and (self.trained or x_t.requires_grad)
        self.calls.append(_Asked(self.name, x_t.shape[0], gradient))
        return gradient


def _new_modules(objective: Any) -> dict[str, nn.Module]:
    """Those that are built for the objective, for features of one channel."""
    return {
        name: spec.build([torch.zeros(1, 1, 1)] * TAPS if spec.features_of else [])
        for name, spec in objective.networks().items()
        if spec.kind == "new"
    }


def _worst(entries: list[tuple[list[_Asked], Counted]]) -> Counted:
    steps = [entry for _, entry in entries]
    schedule = Schedule(
        calls=fmean(step.schedule.calls for step in steps),
        rows=fmean(step.schedule.rows for step in steps),
        teacher_rows=fmean(step.schedule.teacher_rows for step in steps),
    )
    largest = [max((call.rows for call in calls if not call.gradient), default=0) for calls, _ in entries]
    chosen = steps[largest.index(max(largest))]
    return Counted(
        phase=chosen.phase,
        share=len(steps) / CYCLE,
        schedule=schedule,
        step=chosen.step,
        state=chosen.state,
        random=chosen.random,
    )
