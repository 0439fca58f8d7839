"""Discriminators that judge by a network's features (arXiv 2403.12015, 2405.14867), and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.conditions import concat_rows


class FeatureHeads(nn.Module):
    """One small head a tap, of features (B, N, D): a logit for each of the N places.

    A head is a norm, and two layers of ``width`` with the mean over the places beside each place, so that it
    sees the whole picture as well as the place.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(count, width) for count in channels)

    @classmethod
    def of(cls, features: list[Tensor], *, width: int = 64) -> FeatureHeads:
        """Heads for features like these: one (1, N, D) a tap."""
        if not features:
            raise ValueError("a discriminator needs features: its network shows none (field.features)")
        return cls([feature.shape[-1] for feature in features], width=width)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits (B, all places of all taps), above 0 for what looks real."""
        if len(features) != len(self.heads):
            raise ValueError(f"expected the features of {len(self.heads)} taps, got {len(features)}")
        return torch.cat([head(feature) for head, feature in zip(self.heads, features, strict=True)], dim=1)


class _Head(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.place = nn.Linear(channels, width)
        self.picture = nn.Linear(channels, width, bias=False)
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.norm(feature.to(self.place.weight.dtype))
        return self.last(self.place(x) + self.picture(x.mean(1, keepdim=True)))[..., 0]


def features_of(field: Any, x_t: Tensor, t: Tensor, cond: Any, *, dtype: torch.dtype) -> list[Tensor]:
    """Features of ``field`` at ``x_t`` (B, …), handed over in ``dtype``; they pass gradients to ``x_t``."""
    ask = getattr(field, "features", None)
    if ask is None:
        raise ValueError(
            "this objective judges by a network's features, but its field has no features(x_t, t, cond): see "
            "twinflow.field.FeatureField; a pipeline's field has it"
        )
    return ask(x_t.to(dtype), t, cond)


def judge(
    heads: nn.Module, field: Any, states: Sequence[Tensor], t: Tensor, cond: Any, *, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Logits (B, …) of each of the ``states`` (B, …) at the times ``t`` (B,), by one call of the network."""
    count = len(states)
    conds = cond if count == 1 else concat_rows([cond] * count)
    logits = heads(features_of(field, torch.cat(list(states)), t.repeat(count), conds, dtype=dtype))
    return logits.to(t.dtype).chunk(count)


# Losses, of each row (B,). The generator's first, then the discriminator's.


def hinge_generator(fake: Tensor) -> Tensor:
    """``-D(fake)``."""
    return -fake.flatten(1).mean(1)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``(max(0, 1 - D(real)) + max(0, 1 + D(fake))) / 2``."""
    return (torch.relu(1 - real).flatten(1).mean(1) + torch.relu(1 + fake).flatten(1).mean(1)) / 2


def logistic_generator(fake: Tensor) -> Tensor:
    """``-log sigmoid(D(fake))``, which does not saturate."""
    return nn.functional.softplus(-fake).flatten(1).mean(1)


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``-log sigmoid(D(real)) - log(1 - sigmoid(D(fake)))``."""
    softplus = nn.functional.softplus
    return softplus(-real).flatten(1).mean(1) + softplus(fake).flatten(1).mean(1)
