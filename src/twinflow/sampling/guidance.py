"""Velocities that the sampler asks a field for: with or without classifier-free guidance, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinflow.conditions import concat_rows, count_rows, take_rows
from twinflow.field import Field


@dataclass
class Velocity:
    """Velocity of the rows of one batch at a common time, as a function of the state.

    Guidance is ``v = v_u + scale (v_c - v_u)`` for times in ``interval``, both halves in one call of the
    field. ``uncond`` has as many rows as ``cond``, or one that serves all.
    """

    field: Field
    cond: Any
    uncond: Any
    scale: float
    interval: tuple[float, float]
    input_dtype: torch.dtype
    nfe: int = 0  # network evaluations an image, so far
    _both: Any = None  # unconditional and conditional rows, joined once

    def __call__(self, x_t: Tensor, *, t: float, r: float) -> Tensor:
        """Velocity (B, …) in the dtype of ``x_t`` (B, …)."""
        if self.scale == 1.0 or not self.interval[0] <= t <= self.interval[1]:
            self.nfe += 1
            return self._ask(x_t, t, r, self.cond)
        self.nfe += 2
        if self._both is None:
            self._both = concat_rows([_as_many_rows(self.uncond, x_t), self.cond])
        v_uncond, v_cond = self._ask(torch.cat([x_t, x_t]), t, r, self._both).chunk(2)
        return v_uncond + self.scale * (v_cond - v_uncond)

    def _ask(self, x_t: Tensor, t: float, r: float, cond: Any) -> Tensor:
        # The state has the precision of times, at least fp32: this is where fp64 times are rounded.
        rows = x_t.new_ones(x_t.shape[0])
        v = self.field(x_t.to(self.input_dtype), t * rows, r * rows, cond)
        if v.shape != x_t.shape:
            raise ValueError(
                f"the field must return a velocity of the state's shape {tuple(x_t.shape)}, "
                f"got {tuple(v.shape)}"
            )
        return v.to(x_t.dtype)


def _as_many_rows(uncond: Any, x_t: Tensor) -> Any:
    count = count_rows(uncond)
    if count == x_t.shape[0]:
        return uncond
    if count != 1:
        raise ValueError(
            f"uncond must have one row, or as many as the noise has ({x_t.shape[0]}), got {count}"
        )
    return take_rows(uncond, torch.zeros(x_t.shape[0], dtype=torch.int64, device=x_t.device))
