"""Fields whose samples are known in closed form, and a recorder of what a field is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DATA_STD = 0.5


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *([1] * (x.dim() - 1))).to(x.dtype)


def gaussian_std(t: Tensor, *, data_std: float = DATA_STD) -> Tensor:
    """Standard deviation of x_t for data N(0, data_std^2)."""
    return (t**2 + (1 - t) ** 2 * data_std**2).sqrt()


def gaussian_map(x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
    """Exact average velocity for Gaussian data; its flow map scales x_t by std(r) / std(t)."""
    t, r = column(t, x_t), column(r, x_t)
    average = (1 - gaussian_std(r) / gaussian_std(t)) / torch.where(t == r, 1, t - r)
    return x_t * torch.where(t == r, (t - (1 - t) * DATA_STD**2) / gaussian_std(t) ** 2, average)


def gaussian_velocity(x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
    """Exact instantaneous velocity for Gaussian data: a stock model, which knows no r."""
    return gaussian_map(x_t, t, t, cond)


def smooth(x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
    """Nothing special, but a different answer for every state, time and target. Rows are independent."""
    t, r = column(t, x_t), column(r, x_t)
    return torch.tanh(x_t * (1 + t)) + 0.3 * r * x_t - 0.1 * t


def by_condition(x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
    """Velocity that tells the condition (B,) and the target of every row."""
    return column(cond, x_t) * (1 + x_t) + column(r, x_t)


@dataclass
class Recorder:
    inner: Any
    calls: list[tuple[Tensor, Tensor, Tensor, Any]] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        self.calls.append((x_t, t, r, cond))
        return self.inner(x_t, t, r, cond)

    @property
    def t(self) -> list[float]:
        return [call[1][0].item() for call in self.calls]

    @property
    def r(self) -> list[float]:
        return [call[2][0].item() for call in self.calls]
