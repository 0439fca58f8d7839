"""DMD2 (arXiv 2405.14867): distribution matching with two time scales, a GAN loss and several steps.

To :mod:`twinflow.objectives.dmd` it adds, and this file has:

    section 4.2  the fake score makes five steps for one of the student
    section 4.3  L_GAN = E[log D(x_t, t)] + E[log(1 - D(G(z)_t, t))],  D a head on the fake score's features  (eq. 4)
    section 4.4  several steps: from t_k the student jumps to data, noise is added back up to t_{k+1} < t_k
    section 4.5  backward simulation: in training the student starts from such states of its own making
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from twinflow.flow import interpolate
from twinflow.objectives.discriminator import (
    FeatureHeads,
    judge,
    logistic_discriminator,
    logistic_generator,
)
from twinflow.objectives.dmd import DMD, distribution_matching, fake_score_loss, one_step_sample
from twinflow.objectives.guided import check_call
from twinflow.objectives.networks import NetworkSpec, Phase, named
from twinflow.objectives.objective import Field, Step, finish, send, working_dtype
from twinflow.objectives.queries import Evaluator
from twinflow.objectives.randomness import RandomSource


@dataclass(kw_only=True)
class DMD2(DMD):
    """DMD's settings with this paper's defaults (SDXL), and:

    ``times``: t_0 > t_1 > … at which the student's steps begin, those of its sampler of the style "few" with
    ``stochastic=1``; (1.0,) is the one-step generator. ``gan_generator``, ``gan_critic``: weights of the GAN's
    two losses; with both 0 there is no discriminator and ``x`` is not used. ``head_width``: of the heads.
    ``lockstep``: call the student equally often in every step, if need be on one spare row, as processes that
    shard the weights must.
    """

    critic_steps: int = 5
    times: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    gan_generator: float = 5e-3
    gan_critic: float = 1e-2
    head_width: int = 64
    lockstep: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.times = tuple(float(t) for t in self.times)
        falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        if not self.times or self.times[0] > 1 or self.times[-1] <= 0 or not falling:
            raise ValueError(f"times must fall from at most 1 to above 0, got {self.times!r}")
        if not (self.gan_generator >= 0 and self.gan_critic >= 0):
            raise ValueError(
                f"gan_generator and gan_critic must be at least 0, got {self.gan_generator!r} and "
                f"{self.gan_critic!r}"
            )

    @property
    def _adversarial(self) -> bool:
        return self.gan_generator > 0 or self.gan_critic > 0

    def networks(self) -> dict[str, NetworkSpec]:
        if not self._adversarial:
            return super().networks()
        width = self.head_width
        heads = NetworkSpec(
            kind="new",
            build=lambda features: FeatureHeads.of(features, width=width),
            features_of="fake_score",
            lr=self.critic_lr,
        )
        return super().networks() | {"discriminator": heads}

    def phase(self, step: int) -> Phase:
        phase = super().phase(step)
        if phase.name == "critic" and self._adversarial:
            return Phase(name="critic", trains=("fake_score", "discriminator"))
        return phase

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
        """Loss of the student, or of the fake score and the head, as the phase says.

        ``networks``: {"fake_score": field with features, "discriminator": heads}. Draws t (B,), the step's number
        k (B,), then z' and one z a step that a row may start from (B, …), and the noise of the real pictures.
        """
        check_call(x, cond, uncond, teacher, guidance=self.guidance, needs_teacher=True)
        assert teacher is not None
        fake_score = named(networks, "fake_score", objective=self)
        random = RandomSource(x, generator)
        low, high = self.time_range
        t_host, number = random.uniform(low=low, high=high), random.below(len(self.times))
        noise = random.noise()
        z = [random.noise() for _ in self.times]
        z_real = random.noise()
        t, data = send(t_host, x.device), x.to(working_dtype(x))
        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype, lockstep=self.lockstep)

        # 4.5. The student's own states, then its jump from them.
        start = self._simulate(ask, field, z, number)
        u = send(torch.tensor(self.times, dtype=t_host.dtype, device=t_host.device)[number], x.device)
        critic = self.phase(self._at).name == "critic"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not critic):
            sample = one_step_sample(ask, field, start, u)

        def judged(*states: Tensor) -> tuple[Tensor, ...]:
            heads = named(networks, "discriminator", objective=self)
            return judge(heads, fake_score, states, t, cond, dtype=x.dtype)

        fake_state = interpolate(sample, noise, t)
        metrics: dict[str, float | Tensor]
        if critic:
            row_loss, metrics = fake_score_loss(ask, fake_score, sample, noise, t), {}
            losses = {"fake_score": row_loss}
            if self.gan_critic > 0:
                real_logits, fake_logits = judged(interpolate(data, z_real, t), fake_state)
                losses["discriminator"] = logistic_discriminator(real_logits, fake_logits)
                row_loss = row_loss + self.gan_critic * losses["discriminator"]
                metrics = {
                    "logit_real": real_logits.detach().mean(),
                    "logit_fake": fake_logits.detach().mean(),
                }
            return finish(row_loss, losses, metrics, t=t_host)
        row_loss, metrics = distribution_matching(
            ask, sample, noise, t, teacher=teacher, fake_score=fake_score, guidance=self.guidance
        )
        losses = {"distribution_matching": row_loss}
        if self.gan_generator > 0:
            losses["adversarial"] = logistic_generator(judged(fake_state)[0])
            row_loss = row_loss + self.gan_generator * losses["adversarial"]
        return finish(row_loss, losses, metrics, t=t_host)

    @torch.no_grad()
    def _simulate(self, ask: Evaluator, field: Field, z: list[Tensor], number: Tensor) -> Tensor:
        """States (B, …) at ``times[number]`` (B,), as the student itself gets there from noise."""
        state = z[0]  # also for a first time below 1, as in the sampler
        for k, (now, then) in enumerate(zip(self.times, self.times[1:], strict=False)):
            some = send((number > k).nonzero().flatten(), state.device)
            ones = torch.ones(len(some), dtype=state.dtype, device=state.device)
            jumped = one_step_sample(ask, field, state[some], now * ones, rows=some)
            state = state.index_copy(0, some, interpolate(jumped, z[k + 1][some], then * ones))
        return state
