"""TrigFlow (arXiv 2410.11081) and the linear flow: the same paths, another clock and scale.

    x_s = cos(s) x + sin(s) z,  s in [0, pi/2],  F = dx_s/ds = cos(s) z - sin(s) x               TrigFlow
    x_t = (1 - t) x + t z,      t in [0, 1],     v = z - x                                       linear

With data of unit variance (sigma_d = 1; SANA-Sprint, 2503.09641, section 3.1):

    t = sin s / (sin s + cos s),   x_t = n x_s,   n = sqrt(t² + (1 - t)²) = 1 / (sin s + cos s)
    F = ((1 - 2t) x_t + n² v) / n
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinflow.flow import expand_time


def trig_time(t: Tensor) -> Tensor:
    """s of the linear time ``t`` in [0, 1]: arctan(t / (1 - t))."""
    return torch.atan2(t, 1 - t)


def linear_time(s: Tensor) -> Tensor:
    """t of the trigonometric time ``s`` in [0, pi/2]."""
    return s.sin() / (s.sin() + s.cos())


def trig_state(x_t: Tensor, t: Tensor) -> Tensor:
    """x_s of the linear state ``x_t`` (B, …) at ``t`` (B,)."""
    return x_t / _norm(t, x_t)


def linear_state(x_s: Tensor, t: Tensor) -> Tensor:
    """x_t of the trigonometric state ``x_s`` (B, …) at the linear time ``t`` (B,)."""
    return x_s * _norm(t, x_s)


def trig_velocity(v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """F of the linear velocity ``v`` at the linear state ``x_t`` (B, …) and time ``t`` (B,).

    The data estimates agree: ``cos(s) x_s - sin(s) F = x_t - t v``.
    """
    n, u = _norm(t, x_t), expand_time(t, x_t)
    return (1 - 2 * u) / n * x_t + n * v


def _norm(t: Tensor, like: Tensor) -> Tensor:
    u = expand_time(t, like)
    return (u**2 + (1 - u) ** 2).sqrt()
