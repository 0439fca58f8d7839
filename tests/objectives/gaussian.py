"""Fields of N(0, s²) data in closed form, and wrong ones near them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twinflow.flow import expand_time


def gaussian_flow_map(s: float):
    """Velocity and any-step field of the flow of N(0, s²) data, in closed form."""

    def sigma(t):
        return (t**2 + (1 - t) ** 2 * s**2).sqrt()

    def velocity(x_t, t):
        return (t - (1 - t) * s**2) / sigma(t) ** 2 * x_t

    def field(x_t, t, r, cond):
        t, r = expand_time(t, x_t), expand_time(r, x_t)
        gap = t - r
        jump = x_t * (1 - sigma(r) / sigma(t)) / torch.where(gap == 0, torch.ones_like(gap), gap)
        return torch.where(gap == 0, velocity(x_t, t), jump)

    return field, velocity


class NearFlowMap(nn.Module):
    """The exact any-step field of N(0, s²), plus ``error`` · (t - r) x_t: its jump to data falls short."""

    def __init__(self, s: float, error: float = 0.0) -> None:
        super().__init__()
        self.exact, _ = gaussian_flow_map(s)
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        return self.exact(x_t, t, r, cond) + self.error * expand_time(t - r, x_t) * x_t


class Scale(nn.Module):
    """The generator x_hat = a z, from any state: F(x_t, t, r) = (x_t - a x_t) / t."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        return (1 - self.a) * x_t / expand_time(t, x_t)


class GaussianVelocity(nn.Module):
    """The velocity field of N(0, std²), whatever r; its features are the state and the time."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        t = expand_time(t, x_t)
        return (t - (1 - t) * self.std**2) / (t**2 + (1 - t) ** 2 * self.std**2) * x_t

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
        return [torch.cat([x_t, t[:, None]], dim=1)[:, None]]


class LogRatio(nn.Module):
    """The best discriminator between N(0, real²) and N(0, fake²) data, at any time, times ``gain``."""

    def __init__(self, *, real: float, fake: float) -> None:
        super().__init__()
        self.real, self.fake = real, fake
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, features: list[Tensor]) -> Tensor:
        x, t = features[0][..., 0], features[0][..., 1]
        real, fake = (t**2 + (1 - t) ** 2 * std**2 for std in (self.real, self.fake))
        return self.gain * ((fake.log() - real.log()) / 2 + x**2 / 2 * (1 / fake - 1 / real))
