"""A learnt weight of the time (arXiv 2312.02696, section 3.3 and 2410.11081): losses of equal size everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeWeight(nn.Module):
    """w(t) of ``exp(w) m - w``, whose minimum is w = -log E[m | t]: each time is divided by its mean loss.

    A linear function of sines and cosines of ``t`` in [0, 1]. It starts at 0.
    """

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, features // 2 + 1), persistent=False)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) of ``t`` (B,)."""
        angles = t[:, None].to(self.linear.weight.dtype) * self.get_buffer("frequencies")
        return self.linear(torch.cat([angles.cos(), angles.sin()], dim=1))[:, 0].to(t.dtype)
