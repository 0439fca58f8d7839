"""Kernel distance of two sets of features (KID, arXiv 1801.01401): unbiased, and usable for few pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    mean: float  # over subsets; may be below 0, being unbiased
    deviation: float  # over subsets


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Squared MMD with the kernel ``(x·y / D + 1)^3`` between features (N, D) and (M, D).

    The mean over ``subsets`` random subsets of ``size`` rows of each, fewer where there are not so many; with both sets
    used up there is one subset. ValueError for fewer than two rows, or features of different widths.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features must have the shapes (N, D) and (M, D), got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"a kernel distance needs at least 2 pictures in each set, got {len(a)} and {len(b)}"
        )
    a, b = a.double(), b.double()
    size = min(size, len(a), len(b))
    if size == len(a) == len(b):
        subsets = 1
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        rows_a = torch.randperm(len(a), generator=generator)[:size]
        rows_b = torch.randperm(len(b), generator=generator)[:size]
        values.append(_mmd(a[rows_a], b[rows_b]))
    found = torch.stack(values)
    return KernelDistance(mean=found.mean().item(), deviation=found.std(correction=0).item())


def _mmd(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased estimate for two sets of m rows."""
    m = len(a)
    within = sum((_kernel(x, x).sum() - _kernel(x, x).diagonal().sum()) / (m * (m - 1)) for x in (a, b))
    return within - 2 * _kernel(a, b).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
