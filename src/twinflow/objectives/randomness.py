"""The random numbers of one step, drawn on the generator's device in the order in which they are asked for."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from twinflow.objectives.objective import send, working_dtype
from twinflow.objectives.times import TimeDistribution


class RandomSource:
    """Draws for the batch ``x`` (B, …). Times stay on the generator's device (the host, as a rule, where rows
    are selected without waiting); noises are moved to that of ``x``."""

    def __init__(self, x: Tensor, generator: Generator | None) -> None:
        self._like, self._generator = x, generator
        self._dtype = working_dtype(x)
        self.device = generator.device if generator is not None else x.device

    def times(self, distribution: TimeDistribution) -> Tensor:
        """(B,) of ``distribution``."""
        return distribution.sample(
            len(self._like), generator=self._generator, device=self.device, dtype=self._dtype
        )

    def uniform(self, *, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,) of U(low, high)."""
        unit = torch.rand(len(self._like), generator=self._generator, device=self.device, dtype=self._dtype)
        return low + (high - low) * unit

    def below(self, count: int) -> Tensor:
        """(B,) int64 of 0 … count - 1."""
        return torch.randint(count, (len(self._like),), generator=self._generator, device=self.device)

    def noise(self) -> Tensor:
        """(B, …) of N(0, I), where ``x`` is."""
        drawn = torch.randn(
            self._like.shape, generator=self._generator, device=self.device, dtype=self._dtype
        )
        return send(drawn, self._like.device)
