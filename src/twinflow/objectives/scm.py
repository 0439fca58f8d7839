"""sCM (arXiv 2410.11081): continuous-time consistency, simplified and stabilised, on the linear flow.

In TrigFlow's coordinates (:mod:`twinflow.objectives.trigflow`), where the student's F(x_s, s) comes from the field
F(x_t, t, 0) as in SANA-Sprint (2503.09641), and f(x_s, s) = cos(s) x_s - sin(s) F(x_s, s) is the consistency function:

    dx_s/ds = F_T(x_s, s)  (distillation; guided)    or    cos(s) z - sin(s) x  (training)
    g = -cos²(s) (F - dx_s/ds) - rho cos(s) sin(s) (x_s + dF/ds)              rearranged tangent, warm-up rho
    g <- g / (|g| + c)                                                        normalised
    L = E[ e^w(s) / D | F(x_s, s) - sg F(x_s, s) - g |² - w(s) ]               (algorithm 1, eq. 8), w learnt

g is cos(s) df/ds, so that at L = 0 the function f is constant along the paths of the velocity, from f(x, 0) = x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from twinflow.flow import expand_time, interpolate
from twinflow.objectives.derivative import Mode, check_derivative, directional_derivative
from twinflow.objectives.guided import check_call, check_guidance, guided_velocity
from twinflow.objectives.losses import mean_square, rms
from twinflow.objectives.networks import NetworkSpec, Phase, named
from twinflow.objectives.objective import Field, Objective, RowLog, Step, role_means, send, working_dtype
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.randomness import RandomSource
from twinflow.objectives.time_weight import TimeWeight
from twinflow.objectives.times import TimeDistribution, log_normal_noise
from twinflow.objectives.trigflow import linear_state, linear_time, trig_state, trig_time, trig_velocity


@dataclass(kw_only=True)
class SCM(Objective):
    """sCD and sCT; defaults are the paper's for distillation.

    ``source``: ``"teacher"`` follows the frozen teacher's velocity (sCD), ``"data"`` that of the row's data
    (sCT), which needs no teacher and has more noise. ``guidance``: omega of ``v_c + omega (v_c - v_u)``, with a
    teacher. ``time``: the paper's log-normal sigma_d tan(s), where sigma_d is 0.5, is a logit-normal t, see
    :func:`log_normal_noise`. ``tangent_c``: c, below which norms of the tangent are not normalised.
    ``tangent_warmup``: optimiser steps in which rho rises from 0 to 1.
    ``adaptive_weighting``: learn w, by a small network "weighting"; else w = 0. ``prior_weighting``: divide
    the squares by tan(s) besides (SANA-Sprint does). ``derivative``, ``delta``: how dF/ds is found, see
    :func:`directional_derivative`; delta is a length of the time s.

    The teacher's and the student's times are shifted by nothing: unit variance of the data is taken for
    granted, as latents have.
    """

    source: Literal["teacher", "data"] = "teacher"
    guidance: float = 0.0
    time: TimeDistribution | Mapping[str, Any] = field(default_factory=lambda: log_normal_noise(-1.0, 1.4))
    tangent_c: float = 0.1
    tangent_warmup: int = 10_000
    adaptive_weighting: bool = True
    prior_weighting: bool = False
    derivative: Mode = "auto"
    delta: float = 5e-3

    def __post_init__(self) -> None:
        self.time = TimeDistribution.of(self.time)
        if self.source not in ("teacher", "data"):
            raise ValueError(f"source must be 'teacher' or 'data', got {self.source!r}")
        check_guidance(self.guidance)
        check_derivative(self.derivative, self.delta)
        if self.source == "data" and self.guidance > 0:
            raise ValueError(
                f"guidance must be 0 with source='data', got {self.guidance}: it is the teacher's"
            )
        if not self.tangent_c > 0 or self.tangent_warmup < 0:
            raise ValueError(
                "tangent_c must be positive and tangent_warmup at least 0, got "
                f"{self.tangent_c!r} and {self.tangent_warmup!r}"
            )

    @property
    def teacher(self) -> str:
        return "frozen" if self.source == "teacher" else "self"

    def networks(self) -> dict[str, NetworkSpec]:
        if not self.adaptive_weighting:
            return {}
        return {"weighting": NetworkSpec(kind="new", build=lambda _: TimeWeight())}

    def phase(self, step: int) -> Phase:
        return Phase(trains=("student", "weighting") if self.adaptive_weighting else ("student",))

    @property
    def warmup(self) -> float:
        """rho of the step at hand."""
        return min(1.0, self._at / self.tangent_warmup) if self.tangent_warmup > 0 else 1.0

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
        """Loss of one batch ``x`` (B, …). ``networks``: {"weighting": :class:`TimeWeight`}, if it is learnt.

        Draws t (B,), then z (B, …).
        """
        distils = self.source == "teacher"
        check_call(x, cond, uncond, teacher, guidance=self.guidance, needs_teacher=distils)
        random = RandomSource(x, generator)
        t_host, z = random.times(TimeDistribution.of(self.time)), random.noise()
        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype)
        t, data = send(t_host, x.device), x.to(working_dtype(x))
        x_t = interpolate(data, z, t)
        F = ask({"main": _jump(field, x_t, t)})["main"]
        row_loss, metrics = self.consistency(
            ask, field, F, x_t=x_t, t=t, data=data, z=z, teacher=teacher, networks=networks
        )
        roles = ["consistency"] * len(t)
        log = RowLog(roles=roles, t=t_host, r=torch.zeros_like(t_host), loss=row_loss.detach())
        return Step(loss=row_loss.mean(), losses=role_means(row_loss, roles), metrics=metrics, rows=log)

    def consistency(
        self,
        ask: Evaluator,
        field: Field,
        v: Tensor,
        *,
        x_t: Tensor,
        t: Tensor,
        data: Tensor,
        z: Tensor,
        teacher: Field | None,
        networks: Mapping[str, Any] | None,
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Loss of each row (B,) and metrics, of the field's own ``v`` = F(x_t, t, 0) with gradient."""
        s, x_s, F = trig_time(t), trig_state(x_t, t), trig_velocity(v, x_t, t)
        F_sg = F.detach()
        sin, cos = expand_time(s, x_s).sin(), expand_time(s, x_s).cos()

        if self.source == "teacher":
            assert teacher is not None
            v_teacher = guided_velocity(ask, teacher, x_t, t=t, r=t, guidance=self.guidance)
            dx = trig_velocity(v_teacher, x_t, t)
        else:
            dx = cos * z - sin * data

        # cos(s) sin(s) dF/ds as one derivative along (cos sin dx, cos sin): it vanishes at both ends. The first step
        # has it too, where rho is 0, so that all steps cost the same.
        change = directional_derivative(
            lambda state, now: trig_field(ask, field, state, now),
            (x_s, s),
            (cos * sin * dx, s.cos() * s.sin()),
            value=F_sg,
            mode=self.derivative,
            delta=self.delta,
        )
        tangent = -(cos**2) * (F_sg - dx) - self.warmup * (cos * sin * x_s + change)
        norm = tangent.flatten(1).norm(dim=1)
        g = tangent / expand_time(norm + self.tangent_c, tangent)

        square = mean_square(F - F_sg - g)
        if self.prior_weighting:
            square = square * (1 - t) / t.clamp(min=1e-4)  # 1 / tan(s)
        if self.adaptive_weighting:
            w = named(networks, "weighting", objective=self)(t)
            square = w.exp() * square - w
        return square, {"tangent_rms": rms(tangent), "tangent_warmup": self.warmup}


def trig_field(ask: Evaluator, field: Field, x_s: Tensor, s: Tensor) -> Tensor:
    """F(x_s, s) of the consistency function that ``field`` is at r = 0."""
    t = linear_time(s)
    x_t = linear_state(x_s, t)
    return trig_velocity(ask({"jump": _jump(field, x_t, t)})["jump"], x_t, t)


def _jump(field: Field, x_t: Tensor, t: Tensor) -> Query:
    return Query(field=field, x_t=x_t, t=t, r=torch.zeros_like(t))
