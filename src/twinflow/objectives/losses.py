"""Distances between a prediction and its target, and weights of the rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_square(difference: Tensor) -> Tensor:
    """Mean square (B,) of each row of ``difference`` (B, …)."""
    return difference.flatten(1).square().mean(1)


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """``mean((p - y)²)`` of each row, (B,)."""
    return mean_square(prediction - target)


def barron(prediction: Tensor, target: Tensor, *, alpha: float = 1.0, c: float = 1e-3) -> Tensor:
    """Mean square of each row, re-weighted as Barron's robust loss (arXiv 1701.03077) would, (B,).

    ``m · sg((b / |alpha - 2| + 1)^(alpha/2 - 1)) / c``, ``m = mean((p - y)²)``, ``b = m / (c² + 1e-8)``.
    At alpha = 1 the value is about ``sqrt(m)`` and the gradient of each row has a constant size whatever its
    error, down to errors of ``c``: rows far off do not drown the others. alpha = 2 is ``m / c``.
    """
    m = mean_square(prediction - target)
    if abs(alpha - 2) < 1e-5:
        return m / c
    b = m.detach() / (c * c + 1e-8)
    return m * (b / abs(alpha - 2) + 1) ** (alpha / 2 - 1) / c


def pseudo_huber(prediction: Tensor, target: Tensor, *, c: float | None) -> Tensor:
    """``sqrt(|p - y|² + c²) - c`` of each row (B,), of arXiv 2310.14189; ``None``: c = 0.00054 sqrt(D)."""
    difference = (prediction - target).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1]) if c is None else c
    square = difference.square().sum(1)
    return square / ((square + c * c).sqrt() + c)  # the same without its cancellation


def distance(prediction: Tensor, target: Tensor, kind: str, *, alpha: float, c: float) -> Tensor:
    """d(prediction, target) of each row (B,): ``kind`` is ``"l2"`` or ``"barron"``."""
    return l2(prediction, target) if kind == "l2" else barron(prediction, target, alpha=alpha, c=c)


def validate_distance(kind: str, *, alpha: float, c: float) -> None:
    """Raise ``ValueError`` unless :func:`distance` knows the settings."""
    if kind not in ("l2", "barron"):
        raise ValueError(f"loss must be 'l2' or 'barron', got {kind!r}")
    if not alpha <= 2:
        raise ValueError(f"barron_alpha must be at most 2, got {alpha!r}")
    if not c > 0:
        raise ValueError(f"barron_c must be positive, got {c!r}")


def tangent_weight(*, t: Tensor, r: Tensor) -> Tensor:
    """``w = 1 + tan((1 - (|t| - |r|)) pi / 2.5)``, (B,): 1 for a jump over the whole path, 4.08 at r = t."""
    return 1 + torch.tan((1 - (t.abs() - r.abs())) * (math.pi / 2.5))


def cosmap_weight(t: Tensor) -> Tensor:
    """``w = 2 / (pi (1 - 2t + 2t²))``, (B,), of arXiv 2403.03206: more weight in the middle times."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t * t))


def clamp(x: Tensor, bound: float | None) -> Tensor:
    """``x`` with every element bounded to [-bound, bound]; ``None`` leaves it as it is."""
    return x if bound is None else x.clamp(-bound, bound)


def rms(x: Tensor) -> Tensor:
    """Root mean square of all elements, detached, as a metric; of no elements it is 0."""
    return x.detach().square().sum().div(max(x.numel(), 1)).sqrt()
