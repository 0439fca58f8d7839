"""What the methods of a comparison keep in memory for a larger model, by the planner: one network against three."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from twinflow.lab.settings import Lab
from twinflow.planner import Backbone, Gpu, Planner, Setup

_PARAMETERS = ("weights", "averages", "frozen teacher", "other networks")
_STATES = ("optimiser states", "optimiser states of other networks")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one method takes on one GPU."""

    method: str
    copies: float  # bytes of parameters, over those of the student alone
    parameter_bytes: int  # of all networks, teachers and averages
    optimizer_bytes: int
    peak: int  # bytes, with activations, gradients and the planner's margin
    fits: bool
    forward_mode: bool  # takes more than this: the planner doesn't simulate forward-mode derivatives


def planned(lab: Lab, backbone: Backbone, setup: Setup, gpu: Gpu) -> Iterator[Planned]:
    """Every method of ``lab`` on ``backbone`` as in ``setup``, whose teacher is replaced by that of the method."""
    first: Planner | None = None
    for name in lab.methods:
        objective = lab.recipe(name, seed=0, steps=setup.steps, folder=Path("x")).build_objective()
        planner = Planner(backbone, objective) if first is None else first.under(objective)
        first = first or planner
        own = replace(setup, teacher=getattr(objective, "teacher", "self"))
        plan = planner.plan(own, gpu)
        network = planner.network(own)
        parts = {component.name: component.bytes for component in plan.components}
        parameters = sum(parts.get(part, 0) for part in _PARAMETERS) - network.buffers
        yield Planned(
            method=name,
            copies=parameters / sum(weight.nbytes for weight in network.weights),
            parameter_bytes=parameters,
            optimizer_bytes=sum(parts.get(part, 0) for part in _STATES),
            peak=plan.peak,
            fits=plan.fits,
            forward_mode=getattr(objective, "derivative", "finite") != "finite",
        )
