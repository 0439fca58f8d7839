"""Distribution matching distillation (arXiv 2311.18828), without its regression loss.

    grad L = E[ w_t (s_fake(x_t, t) - s_real(x_t, t)) dG/dtheta ],   x_t = (1 - t) G(z) + t z'          (eq. 7)
           ~ E[ (mu_fake - mu_real) / mean |G(z) - mu_real| dG/dtheta ]                                (eq. 8)
    L_fake = E[ | v_fake(x_t, t) - (z' - sg G(z)) |² ]                                                (eq. 6)

G(z) = z - F(z, 1, 0) is the student's one-step sample, mu = x_t - t v a network's estimate of the data: mu_real of
the frozen teacher, guided, and mu_fake of the fake score, a copy of the teacher that is trained on samples of the
student. Steps train the fake score and the student in turn.

The weight w_t of eq. 8 is written for mu; its factor 1 - t is dropped, as in the authors' code. The fake score
learns the velocity, whose minimum is the same as that of eq. 6. The regression to pictures that the teacher made
from the same noise, which needs these pictures and a perceptual distance, is left out, as in DMD2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from twinflow.flow import data_estimate, expand_time, interpolate, velocity
from twinflow.objectives.guided import check_call, check_guidance, guided_velocity
from twinflow.objectives.losses import l2, rms
from twinflow.objectives.networks import NetworkSpec, Phase, named
from twinflow.objectives.objective import Field, Objective, Step, finish, send
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.randomness import RandomSource


@dataclass(kw_only=True)
class DMD(Objective):
    """DMD; defaults are the paper's.

    ``guidance``: omega of ``v_c + omega (v_c - v_u)`` of the teacher. ``time_range``: times at which the two
    scores are compared, and at which the fake score learns, uniformly; the ends are left out, where scores are
    either known to all or worth nothing. ``critic_steps``: steps of the fake score before each of the student.
    ``critic_lr``: factor on its learning rate.
    """

    teacher: ClassVar[str] = "frozen"

    guidance: float = 0.0
    time_range: tuple[float, float] = (0.02, 0.98)
    critic_steps: int = 1
    critic_lr: float = 1.0

    def __post_init__(self) -> None:
        self.time_range = (float(self.time_range[0]), float(self.time_range[1]))
        low, high = self.time_range
        if not 0 < low < high <= 1:
            raise ValueError(f"time_range must be (a, b) with 0 < a < b <= 1, got {self.time_range!r}")
        if not (isinstance(self.critic_steps, int) and self.critic_steps >= 1):
            raise ValueError(f"critic_steps must be a whole number of at least 1, got {self.critic_steps!r}")
        check_guidance(self.guidance)

    def networks(self) -> dict[str, NetworkSpec]:
        return {"fake_score": NetworkSpec(kind="trained", lr=self.critic_lr)}

    def phase(self, step: int) -> Phase:
        if step % (self.critic_steps + 1) == self.critic_steps:
            return Phase()
        return Phase(name="critic", trains=("fake_score",))

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
        """Loss of the student or of the fake score, as the phase says.

        Of ``x`` (B, …) only shape, dtype and device are used. ``networks``: {"fake_score": field}. Draws t (B,),
        then z and z' (B, …).
        """
        check_call(x, cond, uncond, teacher, guidance=self.guidance, needs_teacher=True)
        assert teacher is not None
        fake_score = named(networks, "fake_score", objective=self)
        random = RandomSource(x, generator)
        low, high = self.time_range
        t_host = random.uniform(low=low, high=high)
        z, noise = random.noise(), random.noise()
        t = send(t_host, x.device)
        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype)

        critic = self.phase(self._at).name == "critic"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not critic):
            sample = one_step_sample(ask, field, z, torch.ones_like(t))
        if critic:
            row_loss = fake_score_loss(ask, fake_score, sample, noise, t)
            return finish(row_loss, {"fake_score": row_loss}, {}, t=t_host)
        row_loss, metrics = distribution_matching(
            ask, sample, noise, t, teacher=teacher, fake_score=fake_score, guidance=self.guidance
        )
        return finish(row_loss, {"distribution_matching": row_loss}, metrics, t=t_host)


def one_step_sample(
    ask: Evaluator, field: Field, x_t: Tensor, t: Tensor, rows: Tensor | None = None
) -> Tensor:
    """The student's data estimate (B, …) from ``x_t`` at ``t`` (B,)."""
    query = Query(field=field, x_t=x_t, t=t, r=torch.zeros_like(t), rows=rows)
    return data_estimate(x_t, ask({"sample": query})["sample"], t)


def fake_score_loss(ask: Evaluator, fake_score: Field, sample: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Eq. 6 of each row (B,): flow matching on the samples."""
    query = Query(field=fake_score, x_t=interpolate(sample, noise, t), t=t, r=t)
    return l2(ask({"fake": query})["fake"], velocity(sample, noise))


def distribution_matching(
    ask: Evaluator,
    sample: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    teacher: Field,
    fake_score: Field,
    guidance: float,
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Half the squares (B,) whose gradient at ``sample`` (B, …) is eq. 8, and metrics.

    mu_fake - mu_real is taken as t (v_real - v_fake), which cancels nothing.
    """
    data = sample.detach()
    x_t = interpolate(data, noise, t)
    v_real = guided_velocity(ask, teacher, x_t, t=t, r=t, guidance=guidance)
    with torch.no_grad():
        v_fake = ask({"fake": Query(field=fake_score, x_t=x_t, t=t, r=t)})["fake"]
    difference = expand_time(t, data) * (v_real - v_fake)
    scale = (data - data_estimate(x_t, v_real, t)).flatten(1).abs().mean(1)
    gradient = difference / expand_time(scale.clamp(min=1e-6), data)
    return l2(sample, data - gradient) / 2, {"score_gap_rms": rms(difference)}
