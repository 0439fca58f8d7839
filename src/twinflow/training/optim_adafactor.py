"""Adafactor (arXiv 1804.04235): the second moment of a matrix as the product of a row's and a column's means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from twinflow.training.optim_rounding import RoundingOptimizer, chunks

_TINY = 1e-30  # epsilon_1 of the paper, added to squares


class Adafactor(RoundingOptimizer):
    """Without momentum, and with the learning rate of the schedule.

    ``beta2``: bound on the decay 1 - t^-0.8 of the means. ``bound``: the largest root mean square of an update, in
    learning rates (d of the paper's update clipping), which takes the place of a clip of the gradient.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        beta2: float,
        names: dict[Tensor, str],
        seed: int,
        bound: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "beta2": beta2, "bound": bound, "weight_decay": weight_decay}
        super().__init__(params, defaults, names=names, seed=seed)

    def new_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=parameter.device)

        if parameter.dim() < 2:
            return {"step": 0, "square": zeros(parameter.numel())}
        rows = parameter.shape[0]
        return {"step": 0, "row_square": zeros(rows), "column_square": zeros(parameter.numel() // rows)}

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        generator: Generator,
    ) -> None:
        rows = parameter.shape[0] if parameter.dim() >= 2 else 1
        weight, g = parameter.view(rows, -1), gradient.reshape(rows, -1)
        new = 1 - min(group["beta2"], 1 - state["step"] ** -0.8)  # 1 in the first step: no bias to correct
        parts = [
            slice(s.start // g.shape[1], s.stop // g.shape[1]) for s in chunks(g.numel(), multiple=g.shape[1])
        ]
        if "square" in state:
            square = state["square"].lerp_(g[0].float().square() + _TINY, new)
            row_scale, column_scale = torch.ones_like(square[:1]), square.rsqrt()
        else:
            means = [_means(g[part]) for part in parts]
            state["row_square"].lerp_(torch.cat([row for row, _ in means]), new)
            state["column_square"].lerp_(torch.stack([c for _, c in means]).sum(0) / rows, new)
            row_scale = (state["row_square"] / state["row_square"].mean()).rsqrt()
            column_scale = state["column_square"].rsqrt()
        squares = [_square_sum(g[part], row_scale[part], column_scale) for part in parts]
        rms = (torch.stack(squares).sum() / g.numel()).sqrt()
        factor = group["lr"] / (rms / group["bound"]).clamp(min=1.0)
        keep = 1 - group["lr"] * group["weight_decay"]
        for part in parts:
            step = g[part].float() * row_scale[part, None] * column_scale
            self.rounding.write(weight[part], weight[part].float() * keep - factor * step, generator)

    @staticmethod
    def state_bytes(shape: Sequence[int]) -> int:
        """Of a parameter of this shape."""
        count = int(torch.Size(shape).numel())
        return 4 * (count if len(shape) < 2 else shape[0] + count // shape[0])


def _means(g: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the squares of each row, and sums of those of each column."""
    square = g.float().square() + _TINY
    return square.mean(1), square.sum(0)


def _square_sum(g: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
    return (g.float() * row_scale[:, None] * column_scale).square().sum()
