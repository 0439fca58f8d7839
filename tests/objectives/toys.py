"""Small fields with known properties, and a recorder of calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class ToyField(nn.Module):
    """A small smooth network on states of shape (B, 2, 3), with conditions (B, 4). Rows are independent."""

    def __init__(self, seed: int = 0, *, out_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(6 + 2 + 4, 8, generator=generator, dtype=torch.float64) / 2)
        self.second = nn.Parameter(torch.randn(8, 6, generator=generator, dtype=torch.float64) / 2)
        self.out_dtype = out_dtype

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        cond = cond["text"] if isinstance(cond, dict) else cond
        dtype = self.first.dtype
        features = torch.cat([x_t.flatten(1), t[:, None], r[:, None], cond], dim=1).to(dtype)
        v = torch.tanh(features @ self.first) @ self.second
        return v.reshape(x_t.shape).to(self.out_dtype or x_t.dtype)


@dataclass
class Recorder:
    """Wraps a field and keeps the inputs of every call."""

    inner: Any
    calls: list[tuple[Tensor, Tensor, Tensor, Any]] = field(default_factory=list)
    grad_rows: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        self.calls.append((x_t.detach(), t, r, cond))
        self.grad_rows += x_t.shape[0] if torch.is_grad_enabled() else 0
        return self.inner(x_t, t, r, cond)

    @property
    def rows(self) -> int:
        return sum(call[0].shape[0] for call in self.calls)


def batch(rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Data (rows, 2, 3), conditions (rows, 4) and unconditional conditions (1, 4)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(rows, 2, 3, generator=generator, dtype=torch.float64).to(dtype)
    cond = torch.randn(rows, 4, generator=generator, dtype=torch.float64).to(dtype)
    uncond = torch.randn(1, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, cond, uncond


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class FeatureToyField(ToyField):
    """A toy that shows its hidden layer, as two places of four channels, and its output."""

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
        features = torch.cat([x_t.flatten(1), t[:, None], t[:, None], cond], dim=1).to(self.first.dtype)
        hidden = torch.tanh(features @ self.first)
        return [hidden.reshape(-1, 2, 4), (hidden @ self.second).reshape(-1, 2, 3)]
