"""One training step, made for real by the objective itself on networks of fake tensors.

So the schedule of forwards, their rows, and what is alive at the same time are those of the training, whatever the
objective: nothing about it is written down here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from twinflow.objectives import STUDENT, NetworkSpec
from twinflow.planner.bridge import FakeField, FakeModule, Subject, features
from twinflow.planner.inputs import Call
from twinflow.planner.network import FakeNetwork
from twinflow.planner.run import Run, StepOptions
from twinflow.planner.schedule import TEACHER, Counted, Schedule, count_steps, make_step, networks_of
from twinflow.planner.timeline import Stretch, Timeline


@dataclass(frozen=True, kw_only=True)
class PhaseProfile:
    """The steps of one of the objective's phases."""

    name: str
    trains: tuple[str, ...]
    share: float  # of all steps
    stretches: tuple[Stretch, ...]  # bytes of activations, gradients, the objective's own tensors over time
    gradients: int  # bytes of all gradients together
    flops: float  # of a step with the whole batch, with recomputation and backward, on average


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What a step costs beyond the weights and the states of the optimiser."""

    schedule: Schedule
    phases: tuple[PhaseProfile, ...]
    forward_flops: float  # of one row
    dead: tuple[str, ...]  # parameters that are trained, and never get a gradient
    # Of modules that are built for the objective: shapes of their parameters.
    modules: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes in one process without sharding."""
        return self.timeline().peak

    @property
    def host(self) -> int:
        """Bytes of offloaded activations."""
        return max(Timeline.of(phase.stretches).host_peak for phase in self.phases)

    @property
    def gradients(self) -> int:
        """Bytes of all gradients together, of the phase that has most."""
        return max(phase.gradients for phase in self.phases)

    @property
    def step_flops(self) -> float:
        """Of a step with the whole batch, on average."""
        return sum(phase.flops * phase.share for phase in self.phases)

    def share_of(self, network: str) -> float:
        """Of all steps, those that train ``network``."""
        return sum(phase.share for phase in self.phases if network in phase.trains)

    def timeline(self, **settings: Any) -> Timeline:
        """Memory over time, of the phase that needs most; ``settings`` are those of :meth:`Timeline.of`."""
        made = [Timeline.of(phase.stretches, **settings) for phase in self.phases]
        return max(made, key=lambda timeline: timeline.peak)


def profile_step(
    network: FakeNetwork,
    call: Call,
    objective: Any,
    *,
    batch: int,
    options: StepOptions,
    update_bytes: Callable[[Sequence[nn.Parameter]], int] = lambda _: 0,
) -> StepProfile:
    """Make a step of ``batch`` rows of each of the phases of ``objective``."""
    specs: dict[str, NetworkSpec] = objective.networks()
    subjects = _subjects(network, call, objective)
    phases, dead, forward = [], set(), 0.0
    counted = count_steps(objective, batch)
    for entry in counted:
        for subject in subjects.values():
            subject.trained = subject.name in entry.phase.trains and subject.name != TEACHER

        def simulate(silent: frozenset[tuple[str, str]] = frozenset(), entry: Counted = entry) -> Run:
            run = Run(
                mode=network.mode,
                subjects=list(subjects.values()),
                options=options,
                update_bytes=update_bytes,
                silent=silent,
            )
            _simulate(run, entry, objective, subjects, batch)
            return run

        run = simulate()
        if options.in_backward and run.dead():  # no block waits for those: once more
            run = simulate(run.dead())
        flops = Timeline.of(run.stretches()).flops
        forward = (flops.get("forward", 0) + flops.get("gradient", 0)) / run.rows
        later = sum(flops.get(phase, 0) for phase in ("gradient", "module", "backward"))
        phases.append(
            PhaseProfile(
                name=entry.phase.name,
                trains=entry.phase.trains,
                share=entry.share,
                stretches=run.stretches(),
                gradients=run.gradient_bytes(),
                flops=entry.schedule.rows * batch * forward + later,
            )
        )
        dead |= {name for owner, name in run.dead() if owner == STUDENT}
    return StepProfile(
        schedule=Schedule.mean(counted),
        phases=tuple(phases),
        forward_flops=forward,
        dead=tuple(sorted(dead)),
        modules={
            name: tuple(tuple(p.shape) for p in subjects[name].module.parameters())
            for name, spec in specs.items()
            if spec.kind == "new"
        },
    )


def _subjects(network: FakeNetwork, call: Call, objective: Any) -> dict[str, Subject]:
    """The networks of ``objective``, the student and copies of it first, then what is built for their features."""
    subjects: dict[str, Subject] = {}
    for name in networks_of(objective):
        own = network if name == STUDENT else network.twin()
        subjects[name] = Subject(
            name=name, module=own.module, trained=False, network=own, call=replace(call, network=own)
        )
    for name, spec in objective.networks().items():
        if spec.build is None:
            continue
        with network.mode, torch.no_grad():
            shown = [] if spec.features_of is None else features(subjects[spec.features_of], 1)
            subjects[name] = Subject(name=name, module=spec.build(shown), trained=False)
    return subjects


def _simulate(run: Run, entry: Counted, objective: Any, subjects: Mapping[str, Subject], batch: int) -> None:
    objective = copy.deepcopy(objective)
    generator = entry.begin(objective)
    stand_ins = {
        name: FakeModule(run, subject) if subject.network is None else FakeField(run, subject)
        for name, subject in subjects.items()
    }
    shape = subjects[STUDENT].call.state_shape  # type: ignore[union-attr]  # it is a transformer
    with run.watching() as tracker, tracker:
        x = torch.zeros(batch, *shape)
        result = make_step(objective, x, stand_ins, generator)
        tracker.mark("backward")
        result.loss.backward()
        tracker.mark("update")
        run.update_rest()
        del result, x
        tracker.mark("end")
