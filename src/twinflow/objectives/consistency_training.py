"""Consistency training (arXiv 2303.01469, improved in 2310.14189): a one-step generator without a teacher.

    f(x_t, t) = x_t - t F(x_t, t, 0),   f(x, 0) = x                                the consistency function
    L = E[ lambda d( f(x_t, t), sg f(x_s, s) ) ],   s < t neighbours on a grid      (2310.14189, eq. 4 and 6)

with x_t and x_s on the path of one picture and one noise. On the linear flow (1 - t, t) that path is, up to the
factor 1 - t, that of the papers with the noise level sigma = sigma_d t / (1 - t), and f is bounded at t = 0 by
itself. The papers' data has the deviation sigma_d = 0.5, latents have 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from twinflow.flow import data_estimate, expand_time, interpolate
from twinflow.objectives.guided import check_call
from twinflow.objectives.losses import pseudo_huber
from twinflow.objectives.networks import NetworkSpec, named
from twinflow.objectives.objective import Field, Objective, RowLog, Step, role_means, send, working_dtype
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.randomness import RandomSource
from twinflow.objectives.times import TimeDistribution, log_normal_noise


@dataclass(kw_only=True)
class ConsistencyTraining(Objective):
    """iCT; defaults are those of arXiv 2310.14189, on the linear flow.

    ``start_intervals``, ``final_intervals``: the grid's number of intervals of [0, 1] doubles from the one to
    the other in equal parts of the run. Few: a quick start with much bias; many: no bias, but the gradients'
    noise grows. ``time``: where on the path; an interval is drawn with the mass that it has here. The paper's
    log-normal sigma is a logit-normal t, see :func:`log_normal_noise`. More mass near t = 1 favours one-step
    samples. ``huber_c``: below it the distance is square, above it linear, in the norm of the whole row;
    ``None`` is the paper's 0.00054 sqrt(D) for D numbers a row. ``weighting``: ``"inverse_gap"``, 1 / (t - s),
    or ``"none"``. The paper's gaps, and its grid, are those of sigma, which weigh high noise less.
    ``target_decay``: the smaller time is judged by the average of the student with this decay; 0, the student
    itself, is what the paper found best.
    """

    start_intervals: int = 10
    final_intervals: int = 1280
    time: TimeDistribution | Mapping[str, Any] = field(default_factory=lambda: log_normal_noise(-1.1, 2.0))
    huber_c: float | None = None
    weighting: Literal["inverse_gap", "none"] = "inverse_gap"
    target_decay: float = 0.0

    def __post_init__(self) -> None:
        self.time = TimeDistribution.of(self.time)
        if not 1 <= self.start_intervals <= self.final_intervals:
            raise ValueError(
                f"start_intervals must be in [1, final_intervals = {self.final_intervals}], "
                f"got {self.start_intervals}"
            )
        check_consistency(self.huber_c, self.target_decay)
        if self.weighting not in ("inverse_gap", "none"):
            raise ValueError(f"weighting must be 'inverse_gap' or 'none', got {self.weighting!r}")

    def networks(self) -> dict[str, NetworkSpec]:
        return target_network(self.target_decay)

    @property
    def intervals(self) -> int:
        """N(k) of the step at hand: min(s_0 2^floor(k / K'), s_1), K' = floor(K / (log2 floor(s_1 / s_0) + 1))."""
        doublings = math.log2(self.final_intervals // self.start_intervals)
        period = max(math.floor(self._of / (doublings + 1)), 1)
        return min(self.start_intervals * 2 ** (self._at // period), self.final_intervals)

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

        Draws t (B,), then z (B, …). ``uncond`` and ``teacher`` are not used.
        """
        check_call(x, cond, uncond, teacher, guidance=0.0, needs_teacher=False)
        random = RandomSource(x, generator)
        drawn, z, count = random.times(TimeDistribution.of(self.time)), random.noise(), self.intervals
        s_host = (drawn * count).floor().clamp(0, count - 1) / count
        t_host = s_host + 1 / count
        data, s, t = x.to(working_dtype(x)), send(s_host, x.device), send(t_host, x.device)

        ask = Evaluator(cond=cond, uncond=None, state_dtype=x.dtype)
        target = field if self.target_decay == 0 else named(networks, "target", objective=self)
        row_loss = consistency_loss(
            ask,
            field,
            target,
            x_t=interpolate(data, z, t),
            t=t,
            x_s=interpolate(data, z, s),
            s=s,
            huber_c=self.huber_c,
        )
        if self.weighting == "inverse_gap":
            row_loss = row_loss * count
        return consistency_step(row_loss, t_host, metrics={"intervals": float(count)})


def consistency_loss(
    ask: Evaluator,
    field: Field,
    target: Field,
    *,
    x_t: Tensor,
    t: Tensor,
    x_s: Tensor,
    s: Tensor,
    huber_c: float | None,
) -> Tensor:
    """``d(f(x_t, t), sg f(x_s, s))`` of each row (B,); f of ``field`` and of ``target``, whose r is 0.

    At s = 0 the target is x_s itself, whatever the network says.
    """
    zero = torch.zeros_like(t)
    F = ask({"main": Query(field=field, x_t=x_t, t=t, r=zero)})["main"]
    with torch.no_grad():
        F_s = ask({"target": Query(field=target, x_t=x_s, t=s, r=zero)})["target"]
    wanted = torch.where(expand_time(s, x_s) == 0, x_s, data_estimate(x_s, F_s, s))
    return pseudo_huber(data_estimate(x_t, F, t), wanted, c=huber_c)


def consistency_step(row_loss: Tensor, t_host: Tensor, *, metrics: dict[str, float | Tensor]) -> Step:
    """The step of rows that jumped from ``t_host`` (B,) to 0."""
    roles = ["consistency"] * len(row_loss)
    log = RowLog(roles=roles, t=t_host, r=torch.zeros_like(t_host), loss=row_loss.detach())
    return Step(loss=row_loss.mean(), losses=role_means(row_loss, roles), metrics=metrics, rows=log)


def target_network(decay: float) -> dict[str, NetworkSpec]:
    """The averaged network that judges the smaller time, if it is not the student itself."""
    return {"target": NetworkSpec(kind="average", decay=decay)} if decay > 0 else {}


def check_consistency(huber_c: float | None, target_decay: float) -> None:
    if not (huber_c is None or huber_c > 0):
        raise ValueError(f"huber_c must be positive, or None for 0.00054 sqrt(D), got {huber_c!r}")
    if not 0 <= target_decay < 1:
        raise ValueError(f"target_decay must be in [0, 1), got {target_decay!r}")
