"""Adafactor (arXiv 1804.04235): the second moment of a matrix as the product of a row's and a column's means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from twinflow.training.fused import Fused, Numbers, each
from twinflow.training.optim_rounding import Rounding, RoundingOptimizer, chunks
from twinflow.training.shards import Cut

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
        extra_bits: int = 0,
        cuts: Mapping[Tensor, Cut] | None = None,
        bound: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.cuts = cuts or {}  # parameters that are slices
        defaults = {"lr": lr, "beta2": beta2, "bound": bound, "weight_decay": weight_decay}
        super().__init__(params, defaults, names=names, seed=seed, extra_bits=extra_bits)

    def new_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=parameter.device)

        if parameter.dim() < 2:
            return {"step": 0, "square": zeros(parameter.numel())}
        return {
            "step": 0,
            "row_square": zeros(parameter.shape[0]),
            "column_square": zeros(_columns(parameter)),
        }

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        generator: Generator,
    ) -> None:
        # Of a matrix that is cut, rows are here or elsewhere, and means over rows are those of all processes.
        cut = self.cuts.get(parameter)
        rows = parameter.shape[0] if parameter.dim() >= 2 else 1
        columns = _columns(parameter)
        weight, g = parameter.view(rows, columns), gradient.reshape(rows, columns)
        new = 1 - min(group["beta2"], 1 - state["step"] ** -0.8)  # 1 in the first step: no bias to correct
        size = max(columns, 1)
        some = chunks(g.numel(), device=g.device, multiple=size)
        parts = [slice(s.start // size, s.stop // size) for s in some]
        if "square" in state:
            square = state["square"].lerp_(g[0].float().square() + _TINY, new)
            row_scale, column_scale = torch.ones(1, device=g.device), square.rsqrt()
        else:
            means = [_MEANS((), g[part]) for part in parts]
            sums = sum((c for _, c in means), start=torch.zeros_like(state["column_square"]))
            if means:
                state["row_square"].lerp_(torch.cat([row for row, _ in means]), new)
            state["column_square"].lerp_(_over_all(sums, cut) / (cut.shape[0] if cut else rows), new)
            row_scale = (state["row_square"] / _mean(state["row_square"], cut)).rsqrt()
            column_scale = state["column_square"].rsqrt()
        squares = [_SQUARE_SUM((), g[part], row_scale[part], column_scale) for part in parts]
        total = _over_all(sum(squares, start=torch.zeros((), device=g.device)), cut)
        rms = (total / (cut.shape.numel() if cut else g.numel())).sqrt()
        factor = group["lr"] / (rms / group["bound"]).clamp(min=1.0)
        keep = 1 - group["lr"] * group["weight_decay"]
        extra = state.get("extra")
        for part in parts:
            rest = None if extra is None else extra.view(rows, columns)[part]
            noise = self.rounding.noise(weight[part], rest, generator)
            scales = (row_scale[part], column_scale, factor)
            new, new_rest = _MOVED((keep,), weight[part], rest, g[part], noise, *scales)
            weight[part].copy_(new)
            if rest is not None:
                rest.copy_(new_rest)

    @staticmethod
    def state_bytes(shape: Sequence[int]) -> int:
        """Of a parameter of this shape."""
        count = int(torch.Size(shape).numel())
        return 4 * (count if len(shape) < 2 else shape[0] + count // shape[0])


def _columns(parameter: Tensor) -> int:
    """Elements of a row; a vector is one row. A slice may have no row at all."""
    return int(parameter.shape[1:].numel()) if parameter.dim() >= 2 else parameter.numel()


def _over_all(part: Tensor, cut: Cut | None) -> Tensor:
    return part if cut is None else cut.add_up(part)


def _mean(rows: Tensor, cut: Cut | None) -> Tensor:
    """Of ``rows`` of all processes."""
    return rows.mean() if cut is None else cut.add_up(rows.sum()) / cut.shape[0]


def _means(_: Numbers, g: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the squares of each row, and sums of those of each column."""
    square = g.float().square() + _TINY
    return square.mean(1), square.sum(0)


def _square_sum(_: Numbers, g: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
    return (g.float() * row_scale[:, None] * column_scale).square().sum()


def _moved(
    numbers: Numbers,
    weight: Tensor,
    extra: Tensor | None,
    g: Tensor,
    noise: Tensor | None,
    row_scale: Tensor,
    column_scale: Tensor,
    factor: Tensor,
) -> tuple[Tensor, Any]:
    """New values of some rows of a weight, and of its extra bits."""
    (keep,) = each(numbers)
    step = g.float() * row_scale[:, None] * column_scale
    value = Rounding.read(weight, extra) * keep - factor * step
    return Rounding.rounded(value, extra, noise)


_MEANS, _SQUARE_SUM, _MOVED = Fused(_means), Fused(_square_sum), Fused(_moved)
