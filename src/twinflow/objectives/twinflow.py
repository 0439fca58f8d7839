"""TwinFlow (arXiv 2512.05150): a one-step generator from one network, without teacher or discriminator.

    L = L_base + L_adv + L_rectify                                                                 (eq. 10)

``L_base`` (eq. 1, RCGM) teaches jumps from any t to any r, ``L_adv`` (eq. 2) teaches the velocity of the
model's own samples at negative times, and ``L_rectify`` (eq. 9) moves the one-step samples by the difference
of the two velocity fields, that is, down the gradient of KL(p_fake || p_real) (eq. 6).

Notation: ``F(x_t, t, r)`` average velocity from t to r (noise minus data), ``v`` the velocity
dx_t/dt = z - x, ``sg`` stop-gradient, B rows. A row's role (:class:`Roles`) fixes its t and r
(:class:`Placement`).

A step makes few, large calls. With teacher="self" and longest_jump=None:

    A  no grad   fake rows: the model's samples     guided rows: F(x_t, t, t; c) and F(x_t, t, t; c0)
    B  grad      every row: F(x_t, t, r; c)
    C  no grad   first jump of RCGM                 one-step samples, re-noised: F at (-t', -t') and (t', t')
    D  no grad   jumps 2 … N of RCGM

Rows that ask another network take a call of their own: 6 calls for "ema", 5 for "frozen". Jumps of at most a
quarter are up to four, not two: 2 calls more, of a quarter of B rows each. With image_free the
guided rows wait for their data, which splits A: 5 calls for "self", no more for the others. A row that can't
influence the loss is in no call: one-step and fake rows are never guided, and fake rows and rows with
t - r < delta never jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from twinflow.flow import data_estimate, expand_time, interpolate, velocity
from twinflow.objectives.draws import Draws
from twinflow.objectives.losses import clamp, distance, rms, tangent_weight
from twinflow.objectives.objective import Field, RowLog, Step, role_means, send, working_dtype
from twinflow.objectives.placement import Placement
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.settings import AnyStepSettings
from twinflow.objectives.times import TimeDistribution


@dataclass(kw_only=True)
class TwinFlow(AnyStepSettings):
    """The TwinFlow objective; its settings are those of :class:`AnyStepSettings`."""

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
        """Loss of one batch; ``backward()`` of ``.loss`` gives the gradients of eq. 10.

        ``x`` (B, …) data, best in fp32 even for bf16 networks: a bf16 state can't resolve a step of delta.
        With ``image_free`` only its shape, dtype and device are used. ``cond`` B rows; ``uncond`` B rows or
        one, for guidance. ``teacher`` the field that the setting ``teacher`` speaks of; not used for "self".
        Nothing given is changed. With a CPU ``generator`` the step never waits for the device.
        """
        self._check_call(x, cond, uncond, teacher)
        draws = Draws.sample(
            x, time=TimeDistribution.of(self.time), inner_nodes=self.order - 1, generator=generator
        )
        roles = self._rotation.deal(x.shape[0])[draws.order.cpu()]
        guide = field if self.teacher == "self" or teacher is None else teacher
        jumper = guide if self.teacher == "ema" else field  # a frozen teacher knows no target times
        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype, lockstep=self.lockstep)
        return self._loss(x, ask, roles=roles, draws=draws, student=field, guide=guide, jumper=jumper)

    def _loss(
        self,
        x: Tensor,
        ask: Evaluator,
        *,
        roles: Tensor,
        draws: Draws,
        student: Field,
        guide: Field,
        jumper: Field,
    ) -> Step:
        """Eq. 10 for given roles (B,) and random numbers."""
        rows = Placement.of(roles, draws, settings=self, device=x.device)
        t, r, z = rows.t, rows.r, draws.z

        # A. Data and velocity: the model's own samples for the fake rows (image-free: for all), guidance.
        data = x.to(working_dtype(x))
        queries = self._sample_queries(draws, rows, student)
        with torch.no_grad():
            if self.image_free:
                data = self._with_samples(data, draws, rows, ask(queries))
                queries = {}
            queries |= self._velocity_queries(interpolate(data, z, t), rows, guide)  # never of fake rows
            answers = ask(queries)
            data = self._with_samples(data, draws, rows, answers)
        x_t = interpolate(data, z, t)
        v = self._velocity(velocity(data, z), answers, rows)

        # B. The forward with gradient.
        F = ask({"main": Query(field=student, x_t=x_t, t=t, r=r)})["main"]
        F_sg = F.detach()

        # C, D. What it is compared with: jumps, and the two velocities at the re-noised one-step samples.
        queries = self._rectify_queries(data_estimate(x_t, F_sg, t), draws, rows, student)
        with torch.no_grad():
            jumps, answers = self._jumps(x_t - self.delta * v, F_sg, rows, jumper, ask, beside=queries)

        # Eq. 1. With g = t - r, its residual is
        #     Delta = (g F - delta v - sum_j (s_j - s_{j+1}) F_j) / delta
        #           = F - v + sum_j (s_j - s_{j+1}) (F - F_j) / delta,  as sum_j (s_j - s_{j+1}) = g - delta.
        # In the second form a constant field has exactly none, in any precision, and a row without jumps
        # (g < delta, even g = 0) does flow matching.
        residual = F_sg - v + jumps
        target = F_sg - clamp(residual, self.clamp)
        # Eq. 2. F(x^fake_t, -t) -> z - x^fake: flow matching on the fake trajectory, never clamped.
        target = target.index_copy(0, rows.fake, v[rows.fake])
        weight = torch.ones_like(t) if self.weighting == "none" else tangent_weight(t=t, r=r)
        row_loss = weight.index_fill(0, rows.fake, 1.0) * self._distance(F, target)
        losses = role_means(row_loss, rows.roles)
        metrics: dict[str, float | Tensor] = {}
        if len(rows.real) > 0:
            metrics["residual_rms"] = rms(residual[rows.real])  # before the clamp

        # Eq. 9. F(z, 1, 0) -> sg[F(z, 1, 0) + Delta_v]. The source adds kappa times the mean over the
        # one-step rows to a mean over all B rows. Here each of those rows gets kappa / share in the mean over
        # all rows: the same number in every batch that holds just its share of one-step rows, and, unlike the
        # source's, independent of how rows are split over micro-batches (one row each, say) and processes.
        if self._rectifies and len(rows.one_step) > 0:
            some = rows.one_step
            delta_v = clamp(answers["real"] - answers["fake"], self.rectify_clamp)  # eq. 7
            rectify = self._distance(F[some], F_sg[some] + delta_v)
            kappa = self.rectify / self._weights.share("one_step")
            row_loss = row_loss.index_add(0, some, kappa * rectify)
            losses["rectify"] = rectify.detach().mean()
            metrics["delta_v_rms"] = rms(delta_v)

        log = RowLog(roles=rows.roles, t=rows.t_host, r=rows.r_host, loss=row_loss.detach())
        return Step(loss=row_loss.mean(), losses=losses, metrics=metrics, rows=log)

    # The parts, in the order of their use

    def _sample_queries(self, draws: Draws, rows: Placement, student: Field) -> dict[str, Query]:
        """The jump F(z, 1, 0) from fresh noise that x_fake = sg(z - F(z, 1, 0)) needs (eq. 2)."""
        if not self._samples:
            return {}
        some = rows.sampled
        one = torch.ones_like(rows.t[some])
        return {
            "sample": Query(
                field=student, x_t=draws.z_sample[some], t=one, r=torch.zeros_like(one), rows=some
            )
        }

    def _with_samples(
        self, data: Tensor, draws: Draws, rows: Placement, answers: dict[str, Tensor]
    ) -> Tensor:
        """``data`` (B, …) with x_fake in the rows that train on the model's own samples, if ``answers`` has them."""
        if "sample" not in answers:
            return data
        x_fake = draws.z_sample[rows.sampled] - answers["sample"]
        return data.index_copy(0, rows.sampled, x_fake)

    def _velocity_queries(self, x_t: Tensor, rows: Placement, guide: Field) -> dict[str, Query]:
        """F(x_t, t, t; c) of the guided and the distilled rows, and F(x_t, t, t; c0) of the guided."""
        if not (self._guides or self._distills):
            return {}

        def query(some: Tensor, *, uncond: bool) -> Query:
            t = rows.t[some]
            return Query(field=guide, x_t=x_t[some], t=t, r=t, rows=some, uncond=uncond)

        asked = {"cond": query(rows.asked, uncond=False)}
        return asked | ({"uncond": query(rows.guided, uncond=True)} if self._guides else {})

    def _velocity(self, v: Tensor, answers: dict[str, Tensor], rows: Placement) -> Tensor:
        """The instantaneous velocity that each row learns from: ``v`` (B, …) of its data, or a field's own
        F(c) in the distilled rows, plus omega (F(c) - F(c0)) in the guided ones.

        Of a frozen teacher without images it is F(c0) + omega (F(c) - F(c0)) in the guided rows.
        """
        if not (self._guides or self._distills):
            return v
        F_c = torch.zeros_like(v).index_copy(0, rows.asked, answers["cond"])
        v = v.index_copy(0, rows.distilled, F_c[rows.distilled])
        if not self._guides:
            return v
        some = rows.guided
        start = answers["uncond"] if self.image_free and self.teacher == "frozen" else v[some]
        return v.index_copy(0, some, start + self.omega * (F_c[some] - answers["uncond"]))

    def _rectify_queries(
        self, x_hat: Tensor, draws: Draws, rows: Placement, student: Field
    ) -> dict[str, Query]:
        """F(x', t') and F(x', -t') at x' = t' z' + (1 - t') x_hat, the one-step samples re-noised (eq. 9)."""
        if not self._rectifies:
            return {}
        some = rows.one_step
        t = send(draws.time_rectify, x_hat.device)[some]
        x_t = interpolate(x_hat[some], draws.z_rectify[some], t)
        return {
            "fake": Query(field=student, x_t=x_t, t=-t, r=-t, rows=some),
            "real": Query(field=student, x_t=x_t, t=t, r=t, rows=some),
        }

    def _jumps(
        self,
        x_s: Tensor,
        F: Tensor,
        rows: Placement,
        jumper: Field,
        ask: Evaluator,
        *,
        beside: dict[str, Query],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``sum_j (s_j - s_{j+1}) (F - F_j) / delta`` of eq. 1 (B, …), 0 where t - r < delta.

        F_j = F(x_{s_j}, s_j, s_{j+1}) is no-grad, and x_{s_{j+1}} = x_{s_j} - (s_j - s_{j+1}) F_j. The jumps
        start at ``x_s`` (B, …), the state one instantaneous step of delta below x_t. The queries ``beside``
        share the first call; their answers are returned too.
        """
        if not self._learns_jumps:
            return torch.zeros_like(F), {}
        some, s = rows.jumping, rows.nodes
        x_s, F_some = x_s[some], F[some]
        total = torch.zeros_like(x_s)
        answers: dict[str, Tensor] = {}
        for j, moving in enumerate(rows.moving):
            t, r, state = s[j, moving], s[j + 1, moving], x_s[moving]
            now = ask(
                {"jump": Query(field=jumper, x_t=state, t=t, r=r, rows=some[moving])}
                | (beside if j == 0 else {})
            )
            answers |= now
            length = expand_time(t - r, state)
            total = total.index_add(0, moving, length * (F_some[moving] - now["jump"]))
            x_s = x_s.index_copy(0, moving, state - length * now["jump"])
        return torch.zeros_like(F).index_copy(0, some, total / self.delta), answers

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """d(prediction, target) of each row (B,)."""
        return distance(prediction, target, self.loss, alpha=self.barron_alpha, c=self.barron_c)
