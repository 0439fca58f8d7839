"""TwinFlow beside a method of three networks: DMD2 (arXiv 2405.14867), with the same optimiser and batch."""

from __future__ import annotations

from dataclasses import dataclass

from twinflow.planner.plan import Plan

_CRITIC_UPDATES = 5  # of the fake score for one of the generator, DMD2's choice


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method takes on one GPU."""

    method: str
    trained: int  # networks
    frozen: int
    peak: int  # bytes
    forwards: float  # of one row, per update of the generator
    fits: bool


def compare(plan: Plan) -> list[Row]:
    """The plan itself, and DMD2: a generator and a fake score are trained in turn, the teacher is frozen.

    So there are two sets of weights and states, one of gradients and activations, and one more set of weights. An
    update of the generator takes a sample with gradient, the fake score's velocity and the teacher's guided one;
    each of the critic's takes a sample without gradient, and a step of flow matching.
    """
    sizes = {component.name: component.bytes for component in plan.components}
    weights, states = sizes["weights"], sizes.get("optimiser states", 0)
    forward = plan.profile.forward_flops
    no_grad = plan.profile.schedule.rows
    own = plan.profile.step_flops / plan.setup.batch / forward
    with_grad = own - no_grad
    dmd2 = _CRITIC_UPDATES * (1 + with_grad) + with_grad + 1 + 2
    ours = plan.peak
    theirs = ours + 2 * weights + states
    if plan.setup.lora_rank is not None:  # one base for all, and two more adapters
        trained = plan.trained * 4
        theirs = ours + trained + states
    return [
        Row(
            method="this recipe",
            trained=1,
            frozen=int("frozen teacher" in sizes),
            peak=ours,
            forwards=own,
            fits=plan.fits,
        ),
        Row(
            method="DMD2",
            trained=2,
            frozen=1,
            peak=theirs,
            forwards=dmd2,
            fits=theirs <= plan.gpu.memory,
        ),
    ]
