"""The times of a sampling run, and the network evaluations that it spends on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.sampling.settings import SamplerSettings, check_nfe, preset


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run: from ``times[i]`` to ``times[i + 1]``, each with or without Heun's corrector.

    Times are numbers of fp32, as the network sees them, so that the state is where the network is told that it is:
    to the bit as in stock schedulers, which compute ``1 - t`` from such a time.
    """

    times: tuple[float, ...]  # steps + 1 times, falling, the last is 0
    corrected: tuple[bool, ...]  # one entry a step

    @property
    def steps(self) -> int:
        return len(self.corrected)


def time_grid(
    steps: int,
    *,
    gaps: tuple[float, float] = (0.0, 0.0),
    time_dist: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Times (steps + 1,) fp64 from noise to data; the last is 0.

    A uniform grid u from ``gaps[0]`` to 1 (end gap 0) or to ``1 - gaps[1]`` followed by 1, warped by the
    Kumaraswamy distribution: ``t = 1 - K(u)``, ``K(u) = (1 - (1 - u^a)^b)^c`` with (a, b, c) = ``time_dist``.
    fp64 whatever the dtype of the noise: in bf16, t = .999 would be 1 and .6 would be .6016.
    """
    start, end = gaps
    if end == 0:
        u = torch.linspace(start, 1, steps + 1, dtype=torch.float64)[:-1]
    else:
        u = torch.linspace(start, 1 - end, steps, dtype=torch.float64)
    a, b, c = time_dist
    warped = (1 - (1 - u**a) ** b) ** c  # of exponents 1 the times are 1 - u to the last bit
    times = torch.cat([1 - warped, torch.zeros(1, dtype=torch.float64)])
    # Two times that round to the same fp32 are one time to the network: a step of no length.
    if not (times.float().diff() < 0).all():
        raise ValueError(
            f"{steps} steps with gaps {gaps} and time_dist {time_dist} have times that do not fall strictly "
            "in fp32: use fewer steps, an end gap that is 0 or not so small, or exponents nearer to 1"
        )
    return times


def make_schedule(nfe: int, settings: SamplerSettings) -> Schedule:
    """Spend ``nfe`` network evaluations an image.

    Guidance takes two evaluations for each velocity. Heun's corrector takes a second velocity at every step
    but the last, which ends at t = 0 where there is nothing to correct, and, if the number of velocities is
    even, but the first: the velocity changes least near pure noise, and a single uncorrected step leaves
    the method of second order.
    """
    check_nfe(nfe)
    if settings.guided and nfe % 2:
        raise ValueError(
            f"nfe must be even with guidance {settings.guidance}, which takes two evaluations a velocity, "
            f"got {nfe}: use {nfe + 1}, or guidance=1 for none"
        )
    velocities = nfe // 2 if settings.guided else nfe
    steps = velocities if settings.order == 1 else velocities // 2 + 1
    uncorrected = {steps - 1} if velocities % 2 else {0, steps - 1}
    times = time_grid(steps, gaps=settings.gaps, time_dist=settings.time_dist)
    return Schedule(
        times=tuple(times.float().tolist()),
        corrected=tuple(settings.order == 2 and i not in uncorrected for i in range(steps)),
    )


def few_step_times(nfe: int) -> list[float]:
    """The ``nfe`` times at which the recommended few-step sampler evaluates the network: 1, …, last."""
    return list(make_schedule(nfe, preset(nfe, "few")).times[:-1])
