"""SANA-Sprint (arXiv 2503.09641): sCM, and latent adversarial distillation by the teacher's features.

    L = L_sCM + lambda L_adv                                                                       (eq. 10)
    L_adv^G = -E[ sum_k D_k(h_k(x~_t, t)) ],   x~_t = (1 - t) f(x_u, u) + t z'                     (eq. 8)
    L_adv^D = E[ sum_k max(0, 1 - D_k(h_k(x_t, t))) + max(0, 1 + D_k(h_k(x~_t, t))) ]              (eq. 9)

h_k are features of the frozen teacher and D_k small heads on them. The generator jumps from u, which with
probability p is 1, the pure noise that a one-step sample starts from (max-time weighting, section 3.3). Steps
train the student and the heads in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from twinflow.flow import data_estimate, interpolate
from twinflow.objectives.discriminator import FeatureHeads, hinge_discriminator, hinge_generator, judge
from twinflow.objectives.guided import check_call
from twinflow.objectives.networks import NetworkSpec, Phase, named
from twinflow.objectives.objective import Field, Step, finish, send, working_dtype
from twinflow.objectives.queries import Evaluator, Query
from twinflow.objectives.randomness import RandomSource
from twinflow.objectives.scm import SCM
from twinflow.objectives.times import TimeDistribution, log_normal_noise


@dataclass(kw_only=True)
class SanaSprint(SCM):
    """sCM's settings (:class:`SCM`) with this paper's defaults, and those of the adversarial part.

    ``adversarial``: lambda. ``max_time``: p. ``time``: of the consistency rows and of u where it is not 1.
    ``judged_time``: of t, where real and generated pictures are compared. ``head_width``: of the
    discriminator's heads; ``discriminator_lr``: factor on their learning rate. The guidance is one number,
    where the paper draws it at random and shows it to the network. The heads have no spectral norm.
    """

    time: TimeDistribution | Mapping[str, Any] = field(default_factory=lambda: log_normal_noise(0.2, 1.6))
    tangent_warmup: int = 4000
    prior_weighting: bool = True
    adversarial: float = 0.5
    max_time: float = 0.5
    judged_time: TimeDistribution | Mapping[str, Any] = field(
        default_factory=lambda: log_normal_noise(-0.6, 1.0)
    )
    head_width: int = 64
    discriminator_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.judged_time = TimeDistribution.of(self.judged_time)
        if self.source != "teacher":
            raise ValueError(f"source must be 'teacher' in SANA-Sprint, got {self.source!r}")
        if not self.adversarial >= 0:
            raise ValueError(f"adversarial must be at least 0, got {self.adversarial!r}")
        if not 0 <= self.max_time <= 1:
            raise ValueError(f"max_time must be in [0, 1], got {self.max_time!r}")

    def networks(self) -> dict[str, NetworkSpec]:
        width = self.head_width
        heads = NetworkSpec(
            kind="new",
            build=lambda features: FeatureHeads.of(features, width=width),
            features_of="teacher",
            lr=self.discriminator_lr,
        )
        return super().networks() | {"discriminator": heads}

    def phase(self, step: int) -> Phase:
        if step % 2 == 1:
            return Phase(name="discriminator", trains=("discriminator",))
        return super().phase(step)

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
        """Loss of one batch ``x`` (B, …), of the student or of the heads, as the phase says.

        ``teacher`` has features (:class:`twinflow.field.FeatureField`). ``networks``: {"discriminator": heads,
        "weighting": :class:`TimeWeight`}. Draws, in either phase: t of the consistency rows, u, U(0, 1) for
        the max-time rows, the judged t (B,), then z, z of u, z' and z of the real pictures (B, …).
        """
        check_call(x, cond, uncond, teacher, guidance=self.guidance, needs_teacher=True)
        assert teacher is not None
        heads = named(networks, "discriminator", objective=self)
        random, times = RandomSource(x, generator), TimeDistribution.of(self.time)
        t_host, u_host = random.times(times), random.times(times)
        u_host = torch.where(random.uniform() < self.max_time, torch.ones_like(u_host), u_host)
        judged = send(random.times(TimeDistribution.of(self.judged_time)), x.device)
        z, z_u, z_fake, z_real = (random.noise() for _ in range(4))

        data, t, u = x.to(working_dtype(x)), send(t_host, x.device), send(u_host, x.device)
        ask = Evaluator(cond=cond, uncond=uncond, state_dtype=x.dtype)
        x_t, x_u = interpolate(data, z, t), interpolate(data, z_u, u)
        zero = torch.zeros_like(u)
        sample = Query(field=field, x_t=x_u, t=u, r=zero)

        if self.phase(self._at).name == "discriminator":
            with torch.no_grad():
                fake = data_estimate(x_u, ask({"sample": sample})["sample"], u)
            states = (interpolate(data, z_real, judged), interpolate(fake, z_fake, judged))
            real_logits, fake_logits = judge(heads, teacher, states, judged, cond, dtype=x.dtype)
            row_loss = hinge_discriminator(real_logits, fake_logits)
            metrics: dict[str, float | Tensor] = {
                "logit_real": real_logits.detach().mean(),
                "logit_fake": fake_logits.detach().mean(),
            }
            return finish(row_loss, {"discriminator": row_loss}, metrics, t=u_host)

        queries = {"main": Query(field=field, x_t=x_t, t=t, r=zero)}
        if self.adversarial > 0:
            rows = torch.arange(len(t), device=t.device)
            queries["sample"] = Query(field=field, x_t=x_u, t=u, r=zero, rows=rows)
        answers = ask(queries)
        row_loss, metrics = self.consistency(
            ask, field, answers["main"], x_t=x_t, t=t, data=data, z=z, teacher=teacher, networks=networks
        )
        losses = {"consistency": row_loss}
        if self.adversarial > 0:
            fake = data_estimate(x_u, answers["sample"], u)
            (logits,) = judge(
                heads, teacher, [interpolate(fake, z_fake, judged)], judged, cond, dtype=x.dtype
            )
            losses["adversarial"] = hinge_generator(logits)
            row_loss = row_loss + self.adversarial * losses["adversarial"]
        return finish(row_loss, losses, metrics, t=t_host)
