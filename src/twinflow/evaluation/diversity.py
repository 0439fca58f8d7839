"""How different the pictures of one prompt are. One-step generators lose this first.

Three views: the mean distance of pictures or of their features, the effective number of different pictures
(Vendi score), and, where objects can be found, how far they move from seed to seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from twinflow.evaluation.features import FeatureFunction, extract, pixel_features

Distance = Literal["l1", "l2", "cosine"]
Box = Sequence[float]  # (x1, y1, x2, y2)


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Mean over the prompts that have a pair to compare, each with the same weight."""

    mean: float
    prompts: dict[Hashable, float]  # by prompt
    pairs: int
    left_out: int  # prompts without a pair to compare


def seed_diversity(
    images: Tensor,
    prompts: Sequence[Hashable],
    *,
    distance: Distance = "l2",
    features: FeatureFunction = pixel_features,
) -> Diversity:
    """Mean pairwise distance of the ``features`` of pictures (N, C, H, W) that share a prompt.

    ``prompts`` (N) names each picture's prompt. Distances do not grow with the number of features: ``"l1"``
    is the mean absolute difference, ``"l2"`` the root of the mean squared one, ``"cosine"`` 1 - cosine.
    """
    if distance not in ("l1", "l2", "cosine"):
        raise ValueError(f"distance must be l1, l2 or cosine, got {distance!r}")
    _check_lengths(images, prompts)
    values = extract(features, images)

    def pairwise(rows: list[int]) -> list[float]:
        return _distances(values[rows], distance).tolist()

    return _over_prompts(prompts, pairwise)


def _distances(values: Tensor, distance: Distance) -> Tensor:
    """Distances (K (K - 1) / 2,) of the rows of ``values`` (K, D)."""
    if distance == "cosine":
        first, second = torch.triu_indices(len(values), len(values), offset=1)
        unit = _unit_rows(values)
        return 1 - (unit @ unit.T)[first, second]
    dim = values.shape[1]
    return torch.pdist(values, p=1) / dim if distance == "l1" else torch.pdist(values) / math.sqrt(dim)


def vendi_score(features: Tensor) -> float:
    """Effective number of different rows of ``features`` (N, D), from 1 (all alike) to N (arXiv 2210.02410).

    exp of the entropy of the eigenvalues of K / N, where K are the cosine similarities.
    """
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"features must have the shape (N, D) with N, D > 0, got {tuple(features.shape)}")
    unit = _unit_rows(features.detach().to("cpu").double())
    # X X^T and X^T X have the same eigenvalues other than 0: take the smaller one.
    gram = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    shares = torch.linalg.eigvalsh(gram / len(unit)).clamp_min(0)
    return torch.exp(torch.special.entr(shares).sum()).item()


def _unit_rows(values: Tensor) -> Tensor:
    """Rows (N, D + 1) of length 1; rows of zeros are alike, and at a right angle to all others."""
    zero = (values == 0).all(dim=1, keepdim=True).to(values.dtype)
    return torch.nn.functional.normalize(torch.cat([values, zero], dim=1), dim=1)


def layout_diversity(
    layouts: Sequence[Sequence[Box]], prompts: Sequence[Hashable], *, size: float = 1.0
) -> Diversity:
    """How far objects lie from where they lie with another seed, for pictures that share a prompt.

    ``layouts`` (N) are the boxes found in each picture. Centres are sorted (by x, then y) and the distance of
    two pictures is the mean over objects of |dx| + |dy|, divided by ``size`` (give the picture's side for
    fractions of it). Only pictures with equally many objects, at least one, are compared: a wrong count is a
    matter of correctness. Divide by the value of real scenes to read it: 1 is as varied as they are.
    """
    if not size > 0:
        raise ValueError(f"size must be above 0, got {size}")
    _check_lengths(layouts, prompts)
    centres = [sorted(((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes) for boxes in layouts]

    def pairwise(rows: list[int]) -> list[float]:
        distances: list[float] = []
        for count in {len(centres[row]) for row in rows} - {0}:
            same = [centres[row] for row in rows if len(centres[row]) == count]
            positions = torch.tensor(same, dtype=torch.float64).flatten(1)  # (K, 2 count)
            distances += (torch.pdist(positions, p=1) / (count * size)).tolist()
        return distances

    return _over_prompts(prompts, pairwise)


def _over_prompts(prompts: Sequence[Hashable], pairwise: Callable[[list[int]], list[float]]) -> Diversity:
    """Mean over prompts of the mean over pairs."""
    by_prompt: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(row)
    distances = {prompt: pairwise(members) for prompt, members in by_prompt.items()}
    means = {prompt: fmean(values) for prompt, values in distances.items() if values}
    if not means:
        raise ValueError(
            f"none of {len(by_prompt)} prompts has two pictures to compare: draw at least 2 seeds a prompt"
        )
    return Diversity(
        mean=fmean(means.values()),
        prompts=means,
        pairs=sum(len(values) for values in distances.values()),
        left_out=len(by_prompt) - len(means),
    )


def _check_lengths(items: Sequence | Tensor, prompts: Sequence[Hashable]) -> None:
    if len(items) != len(prompts):
        raise ValueError(f"{len(items)} pictures need as many prompts, got {len(prompts)}")
