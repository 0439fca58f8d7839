"""Sampling of a field of average velocities, in few, any or many steps.

One step from t to t', with F the velocity that the style asks for (arXiv 2512.05150; UCGM-S):

    x_hat  = x_t - t F                      what the data would be
    z_hat  = x_t + (1 - t) F                what the noise would be
    x_t'   = (1 - t') x_hat + t' (sqrt(1 - s) z_hat + sqrt(s) eps),    eps ~ N(0, I)

With s = 0 this is ``x_t' = x_t - (t - t') F``: Euler's step for ``multi``, the flow map itself for ``any``.
With s = 1 and ``few`` it is the multi-step sampling of consistency models. The result is the last x_hat.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Generator, Tensor

from twinflow.sampling.guidance import Field, Velocity
from twinflow.sampling.noise import RowGenerators, fresh_noise, generators_from
from twinflow.sampling.schedule import make_schedule
from twinflow.sampling.settings import (
    SamplerSettings,
    SettingOverrides,
    Style,
    check_nfe,
    resolve_settings,
)


@dataclass(frozen=True, kw_only=True)
class SamplingStep:
    """Where a step began and what data it pointed to."""

    t: float
    x_t: Tensor  # (B, …) the state at t, at least fp32
    x_hat: Tensor  # (B, …) the data estimate from there
    nfe: int  # network evaluations an image, this step's included


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Every step of a run. ``x_hats[-1]`` is the sample."""

    times: tuple[float, ...]  # at which the steps begin; all end at 0
    states: list[Tensor]  # (B, …) one a step, at least fp32
    x_hats: list[Tensor]  # (B, …) likewise
    nfe: int  # network evaluations an image that were spent

    @property
    def sample(self) -> Tensor:
        return self.x_hats[-1]


@torch.no_grad()
def sample(
    field: Field,
    noise: Tensor,
    cond: Any,
    *,
    nfe: int,
    style: Style = "few",
    generator: RowGenerators | None = None,
    uncond: Any = None,
    settings: SamplerSettings | None = None,
    **overrides: Unpack[SettingOverrides],
) -> Tensor:
    """Generate data (B, …) from ``noise`` (B, …) and return it in the dtype of ``noise``.

    ``nfe`` counts network evaluations an image. With guidance each velocity costs two, so ``nfe=100`` makes
    50 steps, and an odd ``nfe`` is an error; a step outside ``guidance_interval`` costs one, so a run with an
    interval spends less than ``nfe``. With ``order=2`` a step costs two velocities except the last: 2 m - 1
    for m steps (:func:`twinflow.sampling.make_schedule` says what happens with an even number).

    Settings are those of :func:`twinflow.sampling.preset` for ``nfe`` and ``style``, or ``settings`` (which
    then also says the style), with single ones given as keywords: ``time_dist``, ``gaps``, ``stochastic``,
    ``extrapolation``, ``order``, ``guidance``, ``guidance_interval`` (see :class:`SamplerSettings`).

    ``generator`` draws the noise of stochastic steps: one generator a row (:func:`row_generators`), or a
    single one, whose rows then depend on the batch. Without it the row's initial noise seeds it. In the
    first and the last case the same noise gives the same picture in any batch.

    Raises ``ValueError`` with the value and the remedy, before the first evaluation.

    >>> noise = seeded_noise((16, 32, 32), seeds=[0, 1, 2])
    >>> latents = sample(pipe.field, noise, pipe.encode_prompts(prompts), nfe=2)
    """
    steps = sampling_steps(
        field,
        noise,
        cond,
        nfe=nfe,
        style=style,
        generator=generator,
        uncond=uncond,
        settings=settings,
        **overrides,
    )
    (last,) = deque(steps, maxlen=1)  # the states before it are freed as the run goes on
    return last.x_hat.to(noise.dtype)


@torch.no_grad()
def sample_trajectory(field: Field, noise: Tensor, cond: Any, *, nfe: int, **options: Any) -> Trajectory:
    """Like :func:`sample`, with the same options, but keep every state and data estimate of the run."""
    steps = list(sampling_steps(field, noise, cond, nfe=nfe, **options))
    return Trajectory(
        times=tuple(step.t for step in steps),
        states=[step.x_t for step in steps],
        x_hats=[step.x_hat for step in steps],
        nfe=steps[-1].nfe,
    )


def sampling_steps(
    field: Field,
    noise: Tensor,
    cond: Any,
    *,
    nfe: int,
    style: Style = "few",
    generator: RowGenerators | None = None,
    uncond: Any = None,
    settings: SamplerSettings | None = None,
    **overrides: Unpack[SettingOverrides],
) -> Iterator[SamplingStep]:
    """The steps of :func:`sample` one by one, for previews and progress bars. Gradients are the caller's."""
    check_nfe(nfe)
    resolved = resolve_settings(nfe=nfe, style=style, settings=settings, overrides=overrides)
    _check_inputs(noise, generator, uncond, resolved)
    schedule = make_schedule(nfe, resolved)
    # Sums of hundreds of steps lose nothing in fp32; the network still gets the dtype that it was given.
    x_t = noise.to(torch.promote_types(noise.dtype, torch.float32))
    # As numbers of fp32, which the times are: .8 is more in fp32, and would lie outside of an interval to .8.
    lowest, highest = torch.tensor(resolved.guidance_interval, dtype=torch.float32).tolist()
    velocity = Velocity(
        field=field,
        cond=cond,
        uncond=uncond,
        scale=resolved.guidance,
        interval=(lowest, highest),
        input_dtype=noise.dtype,
    )
    if generator is None and resolved.stochastic != 0 and schedule.steps > 1:
        generator = generators_from(noise)
    return _steps(velocity, x_t, schedule.times, schedule.corrected, resolved, generator)


def _steps(
    velocity: Velocity,
    x_t: Tensor,
    times: tuple[float, ...],
    corrected: tuple[bool, ...],
    settings: SamplerSettings,
    generator: RowGenerators | None,
) -> Iterator[SamplingStep]:
    previous: tuple[Tensor, Tensor] | None = None  # the estimates of the step before
    for t, t_next, correct in zip(times[:-1], times[1:], corrected, strict=True):
        v = velocity(x_t, t=t, r=target_time(settings.style, t=t, t_next=t_next))
        if correct:
            v = (v + _endpoint_velocity(velocity, x_t, v, settings.style, t=t, t_next=t_next)) / 2
        x_hat, z_hat = x_t - t * v, x_t + (1 - t) * v
        yield SamplingStep(t=t, x_t=x_t, x_hat=x_hat, nfe=velocity.nfe)
        if t_next == 0:
            return
        share = stochastic_share(settings.stochastic, t=t, t_next=t_next)
        if share == 0 and settings.extrapolation == 0:
            x_t = x_t - (t - t_next) * v  # what follows, without its cancellations
            continue
        estimates = (x_hat, z_hat)
        if previous is not None:
            x_hat = x_hat + settings.extrapolation * (x_hat - previous[0])
            z_hat = z_hat + settings.extrapolation * (z_hat - previous[1])
        previous = estimates  # raw: what was extrapolated is not extrapolated again
        if share > 0:
            assert generator is not None
            z_hat = math.sqrt(1 - share) * z_hat + math.sqrt(share) * fresh_noise(z_hat, generator)
        x_t = (1 - t_next) * x_hat + t_next * z_hat


def target_time(style: Style, *, t: float, t_next: float) -> float:
    """Target r of the velocity that a style asks for at t, on the way to ``t_next``."""
    return {"few": 0.0, "any": t_next, "multi": t}[style]


def _endpoint_velocity(
    velocity: Velocity, x_t: Tensor, v: Tensor, style: Style, *, t: float, t_next: float
) -> Tensor:
    """Heun's second velocity, at the end of the step that ``v`` makes.

    It is of the kind that the style asks for, seen from the other end: the jump to data for ``few``, the
    instantaneous velocity for ``multi``, and for ``any`` the average over the same interval, from ``t_next``
    back to t. An exact flow map is its own inverse backwards, so its steps stay exact; a field that ignores
    r gets Heun's method. Training asks only for r <= t: an ``any`` model is best sampled with order 1.
    """
    x_next = x_t - (t - t_next) * v
    return velocity(x_next, t=t_next, r=target_time(style, t=t_next, t_next=t))


def stochastic_share(stochastic: float | Literal["sde"], *, t: float, t_next: float) -> float:
    """Share s of fresh noise at this step, for ``t_next`` > 0.

    ``"sde"``: ``s = 2 t (t - t') / t'^2``, at most 1: more noise where the step is long.
    """
    if stochastic == "sde":
        return min(1.0, 2 * t * (t - t_next) / t_next**2)
    return float(stochastic)


def _check_inputs(
    noise: Tensor, generator: RowGenerators | None, uncond: Any, settings: SamplerSettings
) -> None:
    if not noise.is_floating_point() or noise.dim() < 2:
        raise ValueError(
            f"noise must be floating point of shape (B, …), got {noise.dtype} of shape {tuple(noise.shape)}"
        )
    if settings.guided and uncond is None:
        raise ValueError(
            f"guidance {settings.guidance} needs uncond, the condition of an empty or negative prompt; "
            "guidance=1 is none"
        )
    if generator is not None and not isinstance(generator, Generator) and len(generator) != noise.shape[0]:
        raise ValueError(
            f"generator must be one generator, or one for each of the {noise.shape[0]} rows of noise, "
            f"got {len(generator)}"
        )
