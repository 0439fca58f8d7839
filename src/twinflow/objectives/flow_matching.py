"""Flow matching (arXiv 2210.02747, 2209.03003): regression of the velocity, to train base models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from twinflow.flow import interpolate, velocity
from twinflow.objectives.guided import check_call
from twinflow.objectives.losses import cosmap_weight, distance, validate_distance
from twinflow.objectives.objective import Field, Objective, RowLog, Step, role_means, send, working_dtype
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.times import TimeDistribution


@dataclass(kw_only=True)
class FlowMatching(Objective):
    """``E d(F(x_t, t, t), z - x)``: every row learns the instantaneous velocity, at r = t.

    ``time``: distribution of t, see :class:`TimeDistribution`; ``"logit_normal"`` is usual for images.
    ``loss``: ``"l2"``, whose minimum is the exact field, or ``"barron"``, which all but normalises each row's
    gradient. ``weighting``: ``"none"`` or ``"cosmap"``, more weight in the middle times.
    To guide the model later, drop conditions in the data: this objective does not.
    """

    time: TimeDistribution | Mapping[str, Any] = field(default_factory=TimeDistribution)
    loss: Literal["barron", "l2"] = "l2"
    barron_alpha: float = 1.0
    barron_c: float = 1e-3
    weighting: Literal["none", "cosmap"] = "none"

    def __post_init__(self) -> None:
        self.time = TimeDistribution.of(self.time)
        validate_distance(self.loss, alpha=self.barron_alpha, c=self.barron_c)
        if self.weighting not in ("none", "cosmap"):
            raise ValueError(f"weighting must be 'none' or 'cosmap', got {self.weighting!r}")

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """Loss of one batch ``x`` (B, …). ``uncond`` and ``teacher`` are not used.

        Draws from ``generator``, on its device: t (B,), then z (B, …).
        """
        check_call(x, cond, uncond, teacher, guidance=0.0, needs_teacher=False)
        device = generator.device if generator is not None else x.device
        dtype = working_dtype(x)
        t_drawn = TimeDistribution.of(self.time).sample(
            x.shape[0], generator=generator, device=device, dtype=dtype
        )
        z = send(torch.randn(x.shape, generator=generator, device=device, dtype=dtype), x.device)
        t, data = send(t_drawn, x.device), x.to(dtype)

        ask = Evaluator(cond=cond, uncond=None, state_dtype=x.dtype)
        F = ask({"main": Query(field=field, x_t=interpolate(data, z, t), t=t, r=t)})["main"]
        row_loss = distance(F, velocity(data, z), self.loss, alpha=self.barron_alpha, c=self.barron_c)
        if self.weighting == "cosmap":
            row_loss = cosmap_weight(t) * row_loss

        roles = ["velocity"] * x.shape[0]
        log = RowLog(roles=roles, t=t_drawn, r=t_drawn, loss=row_loss.detach())
        return Step(loss=row_loss.mean(), losses=role_means(row_loss, roles), metrics={}, rows=log)
