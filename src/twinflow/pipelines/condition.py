"""What a stock transformer is conditioned on, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Keyword arguments of the transformer, each a tensor whose first dimension is the batch."""

    kwargs: dict[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.kwargs.values())).shape[0]

    def take(self, rows: Tensor) -> Condition:
        """Rows ``rows`` (K,) int64, in that order; repeats are allowed."""
        return Condition({name: value[rows.to(value.device)] for name, value in self.kwargs.items()})

    @classmethod
    def concat(cls, conditions: list[Condition]) -> Condition:
        """The rows of all ``conditions`` after one another."""
        names = conditions[0].kwargs
        return cls({name: torch.cat([c.kwargs[name] for c in conditions]) for name in names})

    def to(self, device: torch.device | str) -> Condition:
        return Condition({name: value.to(device) for name, value in self.kwargs.items()})
