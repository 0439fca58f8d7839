"""Where the rows of a step are put: their times, and which of them each part of the step needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.objectives.draws import Draws
from twinflow.objectives.objective import send
from twinflow.objectives.roles import ROLE_NAMES
from twinflow.objectives.settings import AnyStepSettings

ONE_STEP, TANGENT, ANY_STEP, FAKE, CONSISTENCY = range(len(ROLE_NAMES))


@dataclass(kw_only=True)
class Placement:
    """Times of the B rows of a step, and row numbers (int64) of the rows that take part in something.

    Rows are selected on the host, where the times are known, so the device is never waited for.
    """

    roles: list[str]  # B names
    t_host: Tensor  # (B,)
    r_host: Tensor  # (B,)

    t: Tensor  # (B,) signed
    r: Tensor  # (B,)
    real: Tensor  # rows on the trajectory of the data
    fake: Tensor  # rows on that of the model's own samples
    sampled: Tensor  # rows whose data is the model's own sample
    guided: Tensor  # rows whose velocity is guided
    distilled: Tensor  # rows whose velocity is a field's, not that of their data
    asked: Tensor  # rows of either kind: their instantaneous velocity is asked for
    jumping: Tensor  # rows with t - r >= delta, that RCGM integrates for
    nodes: Tensor  # (N + 1, len(jumping)) times s_0 … s_N of the jumps; at the end a row stays where it is
    moving: list[Tensor]  # for each of the N jumps, the columns of ``nodes`` that make it
    one_step: Tensor  # rows that are rectified

    @classmethod
    def of(cls, roles: Tensor, draws: Draws, *, settings: AnyStepSettings, device: torch.device) -> Placement:
        """Place rows with the role numbers ``roles`` (B,) by the random numbers ``draws``."""
        is_fake, is_one_step = roles == FAKE, roles == ONE_STEP
        tau, u = draws.time.cpu(), draws.span.cpu()

        # t: 1 for one_step, -tau for fake, tau for all others.
        t = torch.where(is_one_step, torch.ones_like(tau), torch.where(is_fake, -tau, tau))
        # r: 0 for one_step and consistency, t - u rho t for the others; rho = 0 puts fake rows at r = t.
        rho = torch.ones_like(tau)
        rho[roles == ANY_STEP] = settings.any_step_span
        rho[roles == TANGENT] = min(settings.tangent_gap, settings.any_step_span)
        rho[is_fake] = 0
        u = torch.where(is_one_step | (roles == CONSISTENCY), torch.ones_like(u), u)
        r = t * (1 - u * rho)

        low, high = settings.guidance_range
        is_jumping = ~is_fake & (t - r >= settings.delta)
        distilled = ~is_fake & torch.tensor(settings.velocity == "field")
        if settings.teacher != "frozen":  # someone has to learn the field from data, and its guidance with it
            distilled &= is_jumping & (roles != TANGENT)
        guided = ~is_fake & (low < t) & (t < high) & (~distilled | (settings.teacher == "frozen"))
        guided &= torch.tensor(settings.omega > 0)
        jumping = _rows(is_jumping)
        sampled = torch.ones_like(is_fake) if settings.image_free else is_fake
        inner = draws.nodes.cpu()[:, jumping] if settings.nodes == "random" else None
        s_0 = torch.maximum(t - settings.delta, r)[jumping]
        counts = jump_counts(s_0 - r[jumping], order=settings.order, longest=settings.longest_jump)
        most = settings.most_jumps
        nodes = jump_nodes(start=s_0, end=r[jumping], counts=counts, most=most, inner=inner)
        moving = [send(_rows(counts > j), device) for j in range(most)]
        return cls(
            roles=[ROLE_NAMES[role] for role in roles.tolist()],
            t_host=t,
            r_host=r,
            t=send(t, device),
            r=send(r, device),
            real=send(_rows(~is_fake), device),
            fake=send(_rows(is_fake), device),
            sampled=send(_rows(sampled), device),
            guided=send(_rows(guided), device),
            distilled=send(_rows(distilled), device),
            asked=send(_rows(guided | distilled), device),
            jumping=send(jumping, device),
            nodes=send(nodes, device),
            moving=moving,
            one_step=send(_rows(is_one_step), device),
        )


def jump_counts(way: Tensor, *, order: int, longest: float | None) -> Tensor:
    """How many jumps (K,) int64 the rows make over ``way`` (K,): ``order``, and more if they were too long."""
    counts = torch.full_like(way, order, dtype=torch.int64)
    return counts if longest is None else counts.maximum((way / longest).ceil().to(torch.int64))


def jump_nodes(
    *, start: Tensor, end: Tensor, counts: Tensor, most: int, inner: Tensor | None = None
) -> Tensor:
    """Times (most + 1, K) from ``start`` (K,) down to ``end`` (K,), both included exactly.

    Evenly spaced over the first ``counts`` (K,) jumps of a row, and ``end`` from there on; or, given ``inner``
    (most - 1, K) of U(0, 1), as the paper draws them: each uniform between ``end`` and its predecessor.
    """
    if inner is None:
        share = (torch.arange(most + 1, dtype=start.dtype)[:, None] / counts).clamp(max=1)
        return start * (1 - share) + end * share
    nodes = [start]
    for u in inner:
        nodes.append(end + u * (nodes[-1] - end))
    return torch.stack([*nodes, end])


def _rows(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()
