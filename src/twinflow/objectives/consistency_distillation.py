"""Consistency distillation (arXiv 2303.01469, algorithm 2; latent and guided: LCM, 2310.04378).

    L = E[ d( f(x_t, t), sg f_(x_s, s) ) ],   x_s = x_t + (s - t) Phi(x_t, t)       (2303.01469 eq. 7; LCM eq. 14)

t and s are neighbours on a grid, Phi is one step of an ODE solver along the frozen teacher's guided velocity, and
f_ is the consistency function of the student's moving average. See
:mod:`twinflow.objectives.consistency_training` for f on the linear flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor

from twinflow.flow import expand_time, interpolate
from twinflow.objectives.consistency_training import (
    check_consistency,
    consistency_loss,
    consistency_step,
    target_network,
)
from twinflow.objectives.guided import check_call, check_guidance, guided_velocity
from twinflow.objectives.networks import NetworkSpec, named
from twinflow.objectives.objective import Field, Objective, Step, send, working_dtype
from twinflow.objectives.queries import Evaluator
from twinflow.objectives.randomness import RandomSource
from twinflow.objectives.times import TimeDistribution


@dataclass(kw_only=True)
class ConsistencyDistillation(Objective):
    """CD; defaults are LCM's (skipping step 20 of 1000, DDIM, Huber 0.001, target average 0.95).

    ``intervals``: of the grid on [0, 1]; one solver step each. More: a more exact map, learnt more slowly.
    ``solver``: ``"euler"``, which on this flow is DDIM, or ``"heun"``, the consistency model paper's, at twice
    the teacher's cost. ``guidance``: omega of ``v_c + omega (v_c - v_u)``, baked into the student. LCM draws
    it at random and shows it to the network, which a stock network can't see; here it is one number.
    ``huber_c``, ``target_decay``: as in :class:`ConsistencyTraining`. ``time``: which intervals are trained.
    """

    teacher: ClassVar[str] = "frozen"

    intervals: int = 50
    solver: Literal["euler", "heun"] = "euler"
    guidance: float = 0.0
    time: TimeDistribution | Mapping[str, Any] = field(default_factory=TimeDistribution)
    huber_c: float | None = 0.001
    target_decay: float = 0.95

    def __post_init__(self) -> None:
        self.time = TimeDistribution.of(self.time)
        if not (isinstance(self.intervals, int) and self.intervals >= 1):
            raise ValueError(f"intervals must be a whole number of at least 1, got {self.intervals!r}")
        if self.solver not in ("euler", "heun"):
            raise ValueError(f"solver must be 'euler' or 'heun', got {self.solver!r}")
        check_guidance(self.guidance)
        check_consistency(self.huber_c, self.target_decay)

    def networks(self) -> dict[str, NetworkSpec]:
        return target_network(self.target_decay)

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        networks: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """Loss of one batch ``x`` (B, …). ``networks``: {"target": field}, if ``target_decay`` > 0.

        Draws t (B,), then z (B, …).
        """
        check_call(x, cond, uncond, teacher, guidance=self.guidance, needs_teacher=True)
        assert teacher is not None
        random = RandomSource(x, generator)
        drawn, z, count = random.times(TimeDistribution.of(self.time)), random.noise(), self.intervals
        s_host = (drawn * count).floor().clamp(0, count - 1) / count
        t_host = s_host + 1 / count
        data, s, t = x.to(working_dtype(x)), send(s_host, x.device), send(t_host, x.device)

        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype)
        x_t = interpolate(data, z, t)
        gap = expand_time(t - s, x_t)
        v = guided_velocity(ask, teacher, x_t, t=t, r=t, guidance=self.guidance)
        if self.solver == "heun":
            v = (v + guided_velocity(ask, teacher, x_t - gap * v, t=s, r=s, guidance=self.guidance)) / 2
        target = field if self.target_decay == 0 else named(networks, "target", objective=self)
        row_loss = consistency_loss(
            ask, field, target, x_t=x_t, t=t, x_s=x_t - gap * v, s=s, huber_c=self.huber_c
        )
        return consistency_step(row_loss, t_host, metrics={})
