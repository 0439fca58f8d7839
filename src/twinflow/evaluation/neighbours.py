"""Fidelity and variety told apart by nearest neighbours: precision and recall (arXiv 1904.06991), density and
coverage (arXiv 2002.09797)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    precision: float  # share of drawn pictures within some real picture's neighbourhood
    recall: float  # share of real pictures within some drawn picture's
    density: float  # real neighbourhoods that a drawn picture lies in, over k: not capped at 1
    coverage: float  # share of real pictures whose neighbourhood has a drawn picture


def neighbours(real: Tensor, drawn: Tensor, *, k: int = 5, block: int = 1024) -> Neighbours:
    """Of features (N, D) and (M, D). A neighbourhood reaches to the ``k``-th nearest of its own set, itself aside.

    Distances are taken block by block, so memory grows with ``block`` times the number of pictures. ValueError
    unless each set has more than ``k`` rows.
    """
    if real.dim() != 2 or drawn.dim() != 2 or real.shape[1] != drawn.shape[1]:
        raise ValueError(
            f"features must have the shapes (N, D) and (M, D), got {tuple(real.shape)}, {tuple(drawn.shape)}"
        )
    if k < 1 or min(len(real), len(drawn)) <= k:
        raise ValueError(
            f"neighbours with k = {k} need more than {k} pictures in each set, got {len(real)} and {len(drawn)}"
        )
    real, drawn = real.double(), drawn.double()
    radii_real, radii_drawn = _radii(real, k, block), _radii(drawn, k, block)
    inside = torch.zeros(len(drawn), dtype=torch.int64)  # real neighbourhoods that each drawn one lies in
    covered, recalled = [], []
    for first in range(0, len(real), block):
        distances = _distances(real[first : first + block], drawn)
        own = radii_real[first : first + block, None]
        inside += (distances <= own).sum(0)
        covered.append((distances <= own).any(1))
        recalled.append((distances <= radii_drawn).any(1))
    return Neighbours(
        precision=(inside > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=(inside.double().mean() / k).item(),
        coverage=torch.cat(covered).double().mean().item(),
    )


def _radii(values: Tensor, k: int, block: int) -> Tensor:
    """Distance of each row to its k-th nearest other row (N,)."""
    parts = []
    for first in range(0, len(values), block):
        distances = _distances(values[first : first + block], values)
        parts.append(distances.kthvalue(k + 1, dim=1).values)  # the first is itself, at distance 0
    return torch.cat(parts)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Differences, not a matrix product: copies are at distance 0 exactly.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
