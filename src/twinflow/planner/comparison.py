"""A method of one network beside one of three: DMD2 (arXiv 2405.14867), with the same optimiser and batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from twinflow.objectives import STUDENT, TwinFlow
from twinflow.objectives.dmd2 import DMD2
from twinflow.objectives.presets import preset
from twinflow.planner.plan import Plan
from twinflow.planner.planner import Planner


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method takes on one GPU."""

    method: str
    trained: int  # transformers
    frozen: int
    peak: int  # bytes
    forwards: float  # of one row, per update of the student
    fits: bool


def compare(planner: Planner, plan: Plan) -> list[Row]:
    """The plan itself, and the same setting under DMD2; under TwinFlow, if the plan is one of several networks.

    Both are planned from the real objectives: their networks, phases and calls. DMD2 makes one-step generators here,
    with the paper's five updates of the fake score for one of the generator, and its discriminator.
    """
    rows = [_row("this recipe", planner.objective, plan)]
    guidance = getattr(planner.objective, "guidance", 0.0)
    method: Any
    if planner.objective.networks():
        name, method, teacher = "TwinFlow", TwinFlow(**preset("twinflow", "paper_qwen")), "self"
    else:
        name, method, teacher = "DMD2", DMD2(times=(1.0,), guidance=guidance), "frozen"
    rival = planner.under(method)
    other = rival.plan(replace(plan.setup, teacher=teacher), plan.gpu, plan.gpus, shards=plan.shards)
    return [*rows, _row(name, method, other)]


def _row(name: str, objective: Any, plan: Plan) -> Row:
    trained = [spec for spec in objective.networks().values() if spec.kind == "trained"]
    work = plan.profile.step_flops / plan.setup.batch / plan.profile.forward_flops
    return Row(
        method=name,
        trained=1 + len(trained),
        frozen=int(getattr(objective, "teacher", "self") == "frozen"),
        peak=plan.peak,
        forwards=work / plan.profile.share_of(STUDENT),
        fits=plan.fits,
    )
