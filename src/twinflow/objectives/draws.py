"""All randomness of one step, drawn up front for all rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from twinflow.objectives.objective import send, working_dtype
from twinflow.objectives.times import TimeDistribution


@dataclass(kw_only=True)
class Draws:
    """Random numbers of a step, in the order in which they are drawn.

    Every row gets every number, whether or not its role uses it, and always in this order. So a result
    depends on the generator alone: not on how calls are grouped, nor on which losses are switched on.
    With a CPU generator nothing waits for the device; one on the device costs a wait, when the times are
    copied to the host to select rows.
    """

    order: Tensor  # (B,) permutation that deals the roles to the rows
    time: Tensor  # (B,) from the time distribution
    span: Tensor  # (B,) U(0, 1): how far below t the target time lies
    z: Tensor  # (B, …) N(0, I): the noise of x_t
    z_sample: Tensor  # (B, …) N(0, I): the noise that the model's own samples start from
    z_rectify: Tensor  # (B, …) N(0, I): z' of the rectification
    time_rectify: Tensor  # (B,) U(0, 1): t' of the rectification
    nodes: Tensor  # (order - 1, B) U(0, 1): the random inner nodes of RCGM

    @classmethod
    def sample(
        cls, x: Tensor, *, time: TimeDistribution, inner_nodes: int, generator: Generator | None
    ) -> Draws:
        """Draw for the batch ``x`` (B, …) on the generator's device; noises are moved to that of ``x``."""
        count, dtype = x.shape[0], working_dtype(x)
        device = generator.device if generator is not None else x.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device, dtype=dtype)

        def noise() -> Tensor:
            return send(torch.randn(x.shape, generator=generator, device=device, dtype=dtype), x.device)

        return cls(  # arguments are evaluated in the order in which they are written
            order=torch.randperm(count, generator=generator, device=device),
            time=time.sample(count, generator=generator, device=device, dtype=dtype),
            span=uniform(count),
            z=noise(),
            z_sample=noise(),
            z_rectify=noise(),
            time_rectify=uniform(count),
            nodes=uniform(inner_nodes, count),
        )
