"""The slow, obvious TwinFlow: one call a quantity, all rows in all of them, and the formulas as published.

Nothing is shared with the implementation: random numbers are drawn here in the documented order, roles come by
name, and masks (not row selection) decide what counts. Fp64 only.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def twinflow_loss(
    *,
    field: Any,
    teacher: Any,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    roles: list[str],
    generator: torch.Generator,
    settings: Any,
    one_step_share: float,
) -> Tensor:
    s = settings
    count = x.shape[0]
    wide = [-1] + [1] * (x.dim() - 1)

    def col(t: Tensor) -> Tensor:
        return t.reshape(wide)

    # Random numbers, in the documented order.
    torch.randperm(count, generator=generator)
    drawn_t = torch.rand(count, generator=generator, dtype=x.dtype) * s.time.scale
    drawn_u = torch.rand(count, generator=generator, dtype=x.dtype)
    z, z_sample, z_rectify = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(3))
    t_rectify = torch.rand(count, generator=generator, dtype=x.dtype)
    node_u = torch.rand(s.order - 1, count, generator=generator, dtype=x.dtype)

    # Times by role.
    t, r = torch.zeros(count, dtype=x.dtype), torch.zeros(count, dtype=x.dtype)
    for i, role in enumerate(roles):
        tau, u = drawn_t[i], drawn_u[i]
        t[i], r[i] = {
            "one_step": (1.0, 0.0),
            "tangent": (tau, tau - u * tau * min(s.tangent_gap, s.any_step_span)),
            "any_step": (tau, tau - u * s.any_step_span * tau),
            "fake": (-tau, -tau),
            "consistency": (tau, 0.0),
        }[role]
    fake = torch.tensor([role == "fake" for role in roles])
    one_step = torch.tensor([role == "one_step" for role in roles])
    one, zero = torch.ones_like(t), torch.zeros_like(t)

    guide = field if s.teacher == "self" else teacher
    jumper = teacher if s.teacher == "ema" else field

    with torch.no_grad():
        # Own samples.
        own = z_sample - field(z_sample, one, zero, cond)
        data = own if s.image_free else torch.where(col(fake), own, x)
        u = t.abs()
        x_t = col(u) * z + (1 - col(u)) * data
        v = z - data

        # The field's own velocity: of a frozen teacher in all rows, else in rows that jump, other than tangent ones.
        f_c = guide(x_t, t, t, cond)
        tangent = torch.tensor([role == "tangent" for role in roles])
        distilled = ~fake & (s.velocity == "field")
        if s.teacher != "frozen":
            distilled &= (t - r >= s.delta) & ~tangent
        v_hat = torch.where(col(distilled), f_c, v)

        # Guidance.
        if s.guidance > 0:
            f_u = guide(x_t, t, t, uncond.expand(count, -1))
            guided = v_hat + s.guidance * (f_c - f_u)
            if s.image_free and s.teacher == "frozen":
                guided = f_u + s.guidance * (f_c - f_u)
            inside = (t > s.guidance_range[0]) & (t < s.guidance_range[1]) & ~fake
            if s.teacher != "frozen":
                inside &= ~distilled
            v_hat = torch.where(col(inside), guided, v_hat)

    prediction = field(x_t, t, r, cond)

    with torch.no_grad():
        # RCGM, formula of the source: y = F - clamp([g F - delta v_hat - I] / delta), or v_hat for g < delta.
        g = t - r
        t_m = torch.maximum(t - s.delta, r)
        longest = s.longest_jump or math.inf
        jumps = torch.tensor([float(max(s.order, math.ceil(way / longest))) for way in (t_m - r).tolist()])
        nodes = [t_m]
        for j in range(1, int(jumps.max()) if s.longest_jump else s.order):
            if s.nodes == "uniform":
                share = (j / jumps.to(x.dtype)).clamp(max=1)  # then it stays at r
                nodes.append(t_m * (1 - share) + r * share)
            else:
                nodes.append(r + node_u[j - 1] * (nodes[-1] - r))
        nodes.append(r)
        state = x_t - s.delta * v_hat
        integral = torch.zeros_like(x)
        for a, b in pairwise(nodes):
            piece = jumper(state, a, b, cond) * col(a - b)
            state = state - piece
            integral = integral + piece
        long = (col(g) * prediction - s.delta * v_hat - integral) / s.delta
        residual = torch.where(col(g >= s.delta), long, prediction - v_hat)
        bounded = residual if s.clamp is None else residual.clamp(-s.clamp, s.clamp)
        target = torch.where(col(fake), v, prediction - bounded)

    def distance(p: Tensor, y: Tensor) -> Tensor:
        m = (p - y).square().flatten(1).mean(1)
        if s.loss == "l2":
            return m
        b = m.detach() / (s.barron_c**2 + 1e-8)
        w = 1.0 if s.barron_alpha == 2 else (b / abs(s.barron_alpha - 2) + 1) ** ((s.barron_alpha - 2) / 2)
        return m * w / s.barron_c

    weight = torch.ones_like(t)
    if s.weighting == "tangent":
        weight = torch.where(fake, one, 1 + torch.tan((1 - (t.abs() - r.abs())) * math.pi / 2.5))
    total = (weight * distance(prediction, target)).mean()

    if s.rectify > 0 and one_step.any():
        with torch.no_grad():
            x_hat = x_t - prediction
            x_r = col(t_rectify) * z_rectify + (1 - col(t_rectify)) * x_hat
            gap = field(x_r, -t_rectify, -t_rectify, cond) - field(x_r, t_rectify, t_rectify, cond)
            gap = gap if s.rectify_clamp is None else gap.clamp(-s.rectify_clamp, s.rectify_clamp)
        rows = distance(prediction, (prediction - gap).detach())
        total = total + s.rectify * torch.where(one_step, rows, zero).sum() / (count * one_step_share)
    return total
