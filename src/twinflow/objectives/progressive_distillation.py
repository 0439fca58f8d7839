"""Progressive distillation (arXiv 2202.00512): a student makes in one step what its teacher makes in two.

    x'  = x_t - (t - t') v_T(x_t, t),  x'' = x' - (t' - t'') v_T(x', t'),   t' = t - 1 / 2N,  t'' = t - 1 / N
    L = E[ w | v(x_t, t) - (x_t - x'') / (t - t'') |² ],   t in {1/N, …, 1}                      (algorithm 2)

Two Euler steps of the teacher are two of DDIM, which on the linear flow is Euler's method. When the stage of N
steps is over the student becomes the teacher and N is halved. Every call names the end of its step as target
time, so that after the last stage the student samples with N steps of the style "any"; with N = 1, with one of any
style.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from twinflow.flow import expand_time, interpolate
from twinflow.objectives.guided import check_call, check_guidance, guided_velocity
from twinflow.objectives.losses import l2
from twinflow.objectives.networks import STUDENT, NetworkSpec, Phase, named
from twinflow.objectives.objective import Field, Objective, RowLog, Step, role_means, send, working_dtype
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.randomness import RandomSource


@dataclass(kw_only=True)
class ProgressiveDistillation(Objective):
    """Stages of ``start_steps``, ``start_steps / 2``, … ``final_steps`` steps, which share the run.

    ``start_steps``: N of the first student; its teacher makes 2 N steps. ``final_steps``: N of the last.
    ``last_stages_longer``: the stages with N of 1 and 2 last twice as long, as in the paper. ``guidance``: omega
    of ``v_c + omega (v_c - v_u)`` of the first teacher; from then on it is baked in (two-stage distillation, arXiv
    2210.03142). ``weighting``: of the squared error of x, ``"truncated_snr"``, max(SNR, 1), with
    SNR = ((1 - t) / t)², or ``"snr_plus_one"``, SNR + 1, both the paper's; ``"velocity"`` is plain squares of v.

    The paper anneals the learning rate in each stage; here it follows the run's schedule. A run that is made
    longer goes on with the stage that it is in: its teacher is that of this stage.
    """

    start_steps: int = 32
    final_steps: int = 1
    last_stages_longer: bool = True
    guidance: float = 0.0
    weighting: Literal["truncated_snr", "snr_plus_one", "velocity"] = "truncated_snr"

    def __post_init__(self) -> None:
        self._reached = 0  # stage of the checkpoint that this run was resumed from
        ratio = self.start_steps / max(self.final_steps, 1)
        if self.final_steps < 1 or ratio < 1 or not math.log2(ratio).is_integer():
            raise ValueError(
                f"start_steps must be final_steps times a power of 2, got start_steps = {self.start_steps} and "
                f"final_steps = {self.final_steps}"
            )
        check_guidance(self.guidance)
        if self.weighting not in ("truncated_snr", "snr_plus_one", "velocity"):
            raise ValueError(
                f"weighting must be 'truncated_snr', 'snr_plus_one' or 'velocity', got {self.weighting!r}"
            )

    def networks(self) -> dict[str, NetworkSpec]:
        return {"teacher": NetworkSpec(kind="stage")}

    def stage(self, step: int) -> int:
        """Number of the stage (0 is the first) that optimiser step ``step`` belongs to."""
        counts = [self.start_steps >> i for i in range(self._stages)]
        shares = [2 if self.last_stages_longer and count <= 2 else 1 for count in counts]
        ends = [sum(shares[: i + 1]) * self._of // sum(shares) for i in range(self._stages)]
        return max(min(sum(step >= end for end in ends), self._stages - 1), self._reached)

    def state_dict(self) -> dict[str, int]:
        """``stage``: of the last step, whose teacher is in the checkpoint."""
        return {"stage": self.stage(self._at)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._reached = int(state.get("stage", 0))  # checkpoints of former versions have none

    @property
    def steps(self) -> int:
        """N of the stage at hand."""
        return self.start_steps >> self.stage(self._at)

    @property
    def _stages(self) -> int:
        return int(math.log2(self.start_steps // self.final_steps)) + 1

    def phase(self, step: int) -> Phase:
        new = step > 0 and self.stage(step) != self.stage(step - 1)
        # The guided teacher of the first stage is asked for twice as many rows as later ones.
        name = "guided" if self.guidance > 0 and self.stage(step) == 0 else STUDENT
        return Phase(name=name, refresh=("teacher",) if new else ())

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        networks: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """Loss of one batch ``x`` (B, …). ``networks``: {"teacher": the student before this stage}.

        Draws the step's number (B,), then z (B, …). The argument ``teacher`` is not used.
        """
        guidance = self.guidance if self.stage(self._at) == 0 else 0.0
        check_call(x, cond, uncond, None, guidance=guidance, needs_teacher=False)
        before = named(networks, "teacher", objective=self)
        random, count = RandomSource(x, generator), self.steps
        t_host = (random.below(count) + 1).to(working_dtype(x)) / count
        z = random.noise()
        t, data = send(t_host, x.device), x.to(working_dtype(x))
        half, end = t - 0.5 / count, (t - 1 / count).clamp(min=0)

        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype)
        x_t = interpolate(data, z, t)
        v_1 = guided_velocity(ask, before, x_t, t=t, r=half, guidance=guidance)
        x_half = x_t - expand_time(t - half, x_t) * v_1
        v_2 = guided_velocity(ask, before, x_half, t=half, r=end, guidance=guidance)
        v = ask({"main": Query(field=field, x_t=x_t, t=t, r=end)})["main"]
        # (x_t - x'') / (t - t''), without its cancellation: the mean of the two velocities.
        row_loss = self._weight(t) * l2(v, (v_1 + v_2) / 2)

        roles = ["step"] * x.shape[0]
        log = RowLog(roles=roles, t=t_host, r=t_host - 1 / count, loss=row_loss.detach())
        return Step(
            loss=row_loss.mean(),
            losses=role_means(row_loss, roles),
            metrics={"stage_steps": float(count)},
            rows=log,
        )

    def _weight(self, t: Tensor) -> Tensor:
        """Weight of |v - v_target|² (B,): the error of x is t times that of v, and SNR t² = (1 - t)²."""
        if self.weighting == "truncated_snr":
            return torch.maximum((1 - t) ** 2, t**2)
        if self.weighting == "snr_plus_one":
            return (1 - t) ** 2 + t**2
        return torch.ones_like(t)
