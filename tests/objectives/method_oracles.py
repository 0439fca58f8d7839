"""The rivals' losses, written once more from the papers: one call a quantity, no helpers, fp64 only.

Each takes the fields, the batch and a generator, draws in the documented order, and returns the loss. Shapes are
(B, 2, 3). Nothing is shared with the implementation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def col(t: Tensor) -> Tensor:
    return t[:, None, None]


def rand(count: int, g: torch.Generator) -> Tensor:
    return torch.rand(count, generator=g, dtype=torch.float64)


def logit_normal(count: int, g: torch.Generator, mean: float, std: float) -> Tensor:
    return torch.sigmoid(mean + std * torch.randn(count, generator=g, dtype=torch.float64))


def log_normal(count: int, g: torch.Generator, mean: float, std: float) -> Tensor:
    """Linear times t of noise levels sigma = e^N(mean, std) on data of deviation 0.5, as EDM, iCT and sCM write them.

    Where sigma / 0.5 is the ratio of noise to data, tan(s) in TrigFlow, t / (1 - t) here.
    """
    sigma = (mean + std * torch.randn(count, generator=g, dtype=torch.float64)).exp()
    s = torch.atan(sigma / 0.5)
    return s.sin() / (s.sin() + s.cos())


def noise(x: Tensor, g: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=g, dtype=torch.float64)


def guided(teacher: Any, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, uncond: Tensor, w: float) -> Tensor:
    v_c, v_u = teacher(x_t, t, r, cond), teacher(x_t, t, r, uncond.expand(len(cond), -1))
    return v_c + w * (v_c - v_u)


def huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    return ((a - b).square().sum((1, 2)) + c**2).sqrt() - c


def consistency_training(
    field: Any, target: Any, x: Tensor, cond: Tensor, g: torch.Generator, *, intervals: int
) -> Tensor:
    t = log_normal(len(x), g, -1.1, 2.0)
    z = noise(x, g)
    n = torch.tensor([min(math.floor(value * intervals), intervals - 1) for value in t.tolist()])
    s, t = n.double() / intervals, (n + 1).double() / intervals

    def f(network: Any, time: Tensor) -> Tensor:
        x_t = col(time) * z + (1 - col(time)) * x
        return x_t - col(time) * network(x_t, time, torch.zeros_like(time), cond)

    with torch.no_grad():
        wanted = f(target, s)
    return (huber(f(field, t), wanted, 0.00054 * math.sqrt(6)) / (t - s)).mean()


def consistency_distillation(
    field: Any,
    target: Any,
    teacher: Any,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    g: torch.Generator,
    *,
    intervals: int,
    heun: bool,
    w: float,
) -> Tensor:
    n = (rand(len(x), g) * intervals).floor()
    z = noise(x, g)
    s, t = n / intervals, (n + 1) / intervals
    zero = torch.zeros_like(t)
    x_t = col(t) * z + (1 - col(t)) * x
    with torch.no_grad():
        slope = guided(teacher, x_t, t, t, cond, uncond, w)
        x_s = x_t + col(s - t) * slope
        if heun:
            x_s = x_t + col(s - t) * (slope + guided(teacher, x_s, s, s, cond, uncond, w)) / 2
        wanted = x_s - col(s) * target(x_s, s, zero, cond)
    return huber(x_t - col(t) * field(x_t, t, zero, cond), wanted, 0.001).mean()


def scm(
    field: Any,
    teacher: Any,
    weight: Any,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    g: torch.Generator,
    *,
    w: float,
    rho: float,
    prior: bool,
    times: tuple[float, float] = (-1.0, 1.4),
    drawn: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """In TrigFlow throughout; the derivative by reverse-mode differentiation, one output number after another."""
    if drawn is None:
        t = log_normal(len(x), g, *times)
        z = noise(x, g)
    else:
        t, z = drawn
    s = torch.atan(t / (1 - t))
    x_s = col(s.cos()) * x + col(s.sin()) * z

    def F(network: Any, state: Tensor, time: Tensor, *, jump: bool, c: Tensor = cond) -> Tensor:
        scale = col(time.sin() + time.cos())
        lin_t = time.sin() / (time.sin() + time.cos())
        lin_x = state / scale
        r = torch.zeros_like(lin_t) if jump else lin_t
        v = network(lin_x, lin_t, r, c)
        data, eps = lin_x - col(lin_t) * v, lin_x + (1 - col(lin_t)) * v
        return col(time.cos()) * eps - col(time.sin()) * data

    F_now = F(field, x_s, s, jump=True)
    with torch.no_grad():
        if teacher is None:
            slope = col(s.cos()) * z - col(s.sin()) * x
        else:
            c_all = uncond.expand(len(cond), -1)
            v_c, v_u = F(teacher, x_s, s, jump=False), F(teacher, x_s, s, jump=False, c=c_all)
            slope = v_c + w * (v_c - v_u)
    state, time = x_s.clone().requires_grad_(), s.clone().requires_grad_()
    out = F(field, state, time, jump=True)
    change = torch.zeros_like(out)
    for i in range(2):
        for j in range(3):
            dx, ds = torch.autograd.grad(out[:, i, j].sum(), (state, time), retain_graph=True)
            change[:, i, j] = (dx * slope).sum((1, 2)) + ds
    cos, sin = col(s.cos()), col(s.sin())
    tangent = -(cos**2) * (F_now - slope) - rho * cos * sin * (x_s + change)
    tangent = tangent.detach()
    tangent = tangent / (tangent.square().sum((1, 2), keepdim=True).sqrt() + 0.1)
    square = (F_now - F_now.detach() - tangent).square().mean((1, 2))
    if prior:
        square = square / s.tan()
    if weight is not None:
        square = weight(t).exp() * square - weight(t)
    return square.mean()


def mean_flow(
    field: Any,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    g: torch.Generator,
    *,
    omega: float,
    kappa: float,
    p: float,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    a, b = logit_normal(len(x), g, -0.4, 1.0), logit_normal(len(x), g, -0.4, 1.0)
    jump = rand(len(x), g) < 0.5
    z = noise(x, g)
    t = torch.maximum(a, b)
    r = torch.where(jump, torch.minimum(a, b), t)
    x_t = col(t) * z + (1 - col(t)) * x
    with torch.no_grad():
        own, free = field(x_t, t, t, cond), field(x_t, t, t, uncond.expand(len(x), -1))
        v = omega * (z - x) + kappa * own + (1 - omega - kappa) * free
        v = torch.where(col((t > low) & (t < high)), v, z - x)
    state, time = x_t.clone().requires_grad_(), t.clone().requires_grad_()
    out = field(state, time, r, cond)
    change = torch.zeros_like(out)
    for i in range(2):
        for j in range(3):
            dx, dt = torch.autograd.grad(out[:, i, j].sum(), (state, time), retain_graph=True)
            change[:, i, j] = (dx * v).sum((1, 2)) + dt
    target = (v - col(t - r) * change).detach()
    square = (field(x_t, t, r, cond) - target).square().sum((1, 2))
    return (square / (square.detach() + 1e-3) ** p).mean()


def progressive(
    field: Any,
    before: Any,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    g: torch.Generator,
    *,
    n: int,
    w: float,
    weighting: str,
) -> Tensor:
    t = (torch.randint(n, (len(x),), generator=g) + 1).double() / n
    z = noise(x, g)
    t1, t2 = t - 0.5 / n, t - 1 / n
    x_t = col(t) * z + (1 - col(t)) * x
    with torch.no_grad():
        x_1 = x_t - (0.5 / n) * guided(before, x_t, t, t1, cond, uncond, w)
        x_2 = x_1 - (0.5 / n) * guided(before, x_1, t1, t2, cond, uncond, w)
        # The data at which one DDIM step from x_t lands on x_2 (paper, algorithm 2).
        ratio = col(t2 / t)
        wanted = (x_2 - ratio * x_t) / ((1 - col(t2)) - ratio * (1 - col(t)))
    x_hat = x_t - col(t) * field(x_t, t, t2, cond)
    snr = ((1 - t) / t) ** 2
    # The error of x is t times that of the velocity.
    weight = {"truncated_snr": snr.clamp(min=1), "snr_plus_one": snr + 1, "velocity": t**-2}[weighting]
    return (weight * (wanted - x_hat).square().mean((1, 2))).mean()


def sample_from(field: Any, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    return x_t - col(t) * field(x_t, t, torch.zeros_like(t), cond)


def matching(
    sample: Tensor,
    eps: Tensor,
    t: Tensor,
    teacher: Any,
    fake: Any,
    cond: Tensor,
    uncond: Tensor,
    w: float,
) -> Tensor:
    """A loss whose gradient at the sample is eq. 8 of DMD, spelt with data estimates."""
    with torch.no_grad():
        x_t = col(t) * eps + (1 - col(t)) * sample
        real = x_t - col(t) * guided(teacher, x_t, t, t, cond, uncond, w)
        made = x_t - col(t) * fake(x_t, t, t, cond)
        size = (sample - real).abs().mean((1, 2), keepdim=True)
        direction = (made - real) / size
    return ((direction * sample).mean((1, 2))).mean()


def flow_loss(fake: Any, sample: Tensor, eps: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    x_t = col(t) * eps + (1 - col(t)) * sample
    return (fake(x_t, t, t, cond) - (eps - sample)).square().mean((1, 2)).mean()
