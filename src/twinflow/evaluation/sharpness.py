"""Sharpness and contrast of pictures: blur and washed-out colours are how few-step models fail first."""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


def luma(pixels: Tensor) -> Tensor:
    """Brightness (N, H, W) in [0, 1], fp64, of pixels (N, 3, H, W) in [-1, 1]."""
    weights = torch.tensor(_LUMA, dtype=torch.float64)
    return (pixels.detach().cpu().double().movedim(1, -1) @ weights + 1) / 2


def sharpness(pixels: Tensor) -> Tensor:
    """Standard deviation of the 4-neighbour Laplacian of the brightness (N,): falls with blur, rises with noise."""
    y = luma(pixels)
    centre = y[:, 1:-1, 1:-1]
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    return (around - 4 * centre).flatten(1).std(dim=1, correction=0)


def contrast(pixels: Tensor) -> Tensor:
    """Standard deviation of the brightness (N,), RMS contrast: 0 for one gray, 0.5 for black and white by halves."""
    return luma(pixels).flatten(1).std(dim=1, correction=0)
