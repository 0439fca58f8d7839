"""MeanFlow (arXiv 2505.13447): average velocities from the identity that defines them, without a teacher.

    u(x_t, t, r) = v - (t - r) d/dt u(x_t, t, r)                                    the MeanFlow identity (eq. 6)
    L = E[ w | u(x_t, t, r) - sg(v - (t - r) (v d_x u + d_t u)) |² ]                       (eq. 9 to 11)

v is the velocity z - x of the row, or with guidance the effective field of eq. 19 and 21,

    v_g = omega v + kappa u(x_t, t, t; c) + (1 - omega - kappa) u(x_t, t, t; c0).

RCGM (eq. 1 of TwinFlow) with order 1 and jumps to one instant below t is this with a finite difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from twinflow.conditions import take_rows
from twinflow.flow import expand_time, interpolate, velocity
from twinflow.objectives.derivative import Mode, check_derivative, directional_derivative
from twinflow.objectives.guided import check_call
from twinflow.objectives.losses import rms
from twinflow.objectives.objective import Field, Objective, RowLog, Step, role_means, send, working_dtype
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.randomness import RandomSource
from twinflow.objectives.times import TimeDistribution


@dataclass(kw_only=True)
class MeanFlow(Objective):
    """MeanFlow; defaults are the paper's.

    ``time``: t and r are the larger and the smaller of two draws from it. ``jumping``: share of the rows that
    keep this r; in the others r = t, which is plain flow matching. ``weight_power``: p of the adaptive weight
    w = 1 / (|error|² + c)^p, 0 is plain squares, 1 gives every row the same say; ``weight_c``: c.
    ``guidance``: kappa; ``guidance_mix``: omega. The learnt guidance scale is omega / (1 - kappa); with the
    default omega = 1, 1 / (1 - kappa), as TwinFlow's with its own teacher. ``guidance_range``: only rows with t
    strictly inside are guided. ``derivative``, ``delta``: see :func:`directional_derivative`; a row never
    looks further back than its r.
    """

    time: TimeDistribution | Mapping[str, Any] = field(
        default_factory=lambda: TimeDistribution(kind="logit_normal", mean=-0.4, std=1.0)
    )
    jumping: float = 0.25
    weight_power: float = 1.0
    weight_c: float = 1e-3
    guidance: float = 0.0
    guidance_mix: float = 1.0
    guidance_range: tuple[float, float] = (0.0, 1.0)
    derivative: Mode = "auto"
    delta: float = 5e-3

    def __post_init__(self) -> None:
        self.time = TimeDistribution.of(self.time)
        self.guidance_range = (float(self.guidance_range[0]), float(self.guidance_range[1]))
        check_derivative(self.derivative, self.delta)
        if not 0 <= self.jumping <= 1:
            raise ValueError(f"jumping must be in [0, 1], got {self.jumping!r}")
        if not (self.weight_power >= 0 and self.weight_c > 0):
            raise ValueError(
                f"weight_power must be at least 0 and weight_c positive, got {self.weight_power!r} and "
                f"{self.weight_c!r}"
            )
        if not 0 <= self.guidance < 1 or not self.guidance_mix > 0:
            raise ValueError(
                f"guidance must be in [0, 1) and guidance_mix positive, got {self.guidance!r} and "
                f"{self.guidance_mix!r}: the learnt scale is guidance_mix / (1 - guidance)"
            )
        low, high = self.guidance_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_range must be (a, b), 0 <= a < b <= 1, got {self.guidance_range!r}")

    @property
    def guidance_scale(self) -> float:
        """The classifier-free guidance scale that ends up in the trained field."""
        return self.guidance_mix / (1 - self.guidance) if self._guides else 1.0

    @property
    def _guides(self) -> bool:
        return self.guidance > 0 or self.guidance_mix != 1

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """Loss of one batch ``x`` (B, …). ``teacher`` is not used.

        Draws two times (B,), U(0, 1) (B,) for the rows that jump, then z (B, …).
        """
        check_call(x, cond, uncond, teacher, guidance=float(self._guides), needs_teacher=False)
        random, times = RandomSource(x, generator), TimeDistribution.of(self.time)
        one, other = random.times(times), random.times(times)
        jumps = random.uniform() < self.jumping
        z = random.noise()
        t_host = torch.maximum(one, other)
        r_host = torch.where(jumps, torch.minimum(one, other), t_host)
        low, high = self.guidance_range
        guided = send(((t_host > low) & (t_host < high)).nonzero().flatten(), x.device)
        some = send((t_host > r_host).nonzero().flatten(), x.device)
        data, t, r = x.to(working_dtype(x)), send(t_host, x.device), send(r_host, x.device)

        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype)
        x_t = interpolate(data, z, t)
        v = self._velocity(ask, field, velocity(data, z), x_t, t, guided)
        u = ask({"main": Query(field=field, x_t=x_t, t=t, r=r)})["main"]

        # (t - r) (v d_x u + d_t u), which is nothing in rows with r = t.
        gap = t[some] - r[some]
        ask_some = Evaluator(cond=take_rows(cond, some), uncond=None, state_dtype=x.dtype)
        target = v
        if len(some) > 0:
            change = directional_derivative(
                lambda state, now: ask_some({"u": Query(field=field, x_t=state, t=now, r=r[some])})["u"],
                (x_t[some], t[some]),
                (v[some], torch.ones_like(gap)),
                value=u[some],
                mode=self.derivative,
                delta=gap.clamp(max=self.delta),
            )
            target = v.index_add(0, some, -expand_time(gap, change) * change)
        square = (u - target).flatten(1).square().sum(1)
        weight = (square.detach() + self.weight_c) ** -self.weight_power
        row_loss = weight * square

        roles = ["jump" if jump else "velocity" for jump in (t_host > r_host).tolist()]
        log = RowLog(roles=roles, t=t_host, r=r_host, loss=row_loss.detach())
        return Step(
            loss=row_loss.mean(),
            losses=role_means(row_loss, roles),
            metrics={"residual_rms": rms(u - target)},
            rows=log,
        )

    def _velocity(
        self, ask: Evaluator, field: Field, v: Tensor, x_t: Tensor, t: Tensor, guided: Tensor
    ) -> Tensor:
        """``v`` (B, …), in the ``guided`` rows the effective field of eq. 19 and 21; no gradient."""
        if not self._guides or len(guided) == 0:
            return v
        some, omega, kappa = guided, self.guidance_mix, self.guidance
        state, now = x_t[some], t[some]
        with torch.no_grad():
            answers = ask(
                {
                    "cond": Query(field=field, x_t=state, t=now, r=now, rows=some),
                    "uncond": Query(field=field, x_t=state, t=now, r=now, rows=some, uncond=True),
                }
            )
        mixed = omega * v[some] + kappa * answers["cond"] + (1 - omega - kappa) * answers["uncond"]
        return v.index_copy(0, some, mixed)
