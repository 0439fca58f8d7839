"""Shapes fitted to coverage: the renderer's own shapes, blurred, against a soft mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from twinflow.data.shapeworld.scenes import inside

SUPERSAMPLE = 4  # of the shapes that are fitted


@dataclass(frozen=True)
class Moments:
    area: float
    x: float
    y: float


@cache
def unit_moments(shape: str) -> Moments:
    """Area and centroid of the shape of radius 1."""
    grid = np.linspace(-1.05, 1.05, 841)
    x, y = np.meshgrid(grid, grid)
    mask = inside(shape, x, y)
    return Moments(float(mask.mean()) * 2.1**2, float(x[mask].mean()), float(y[mask].mean()))


def templates(
    shapes: tuple[str, ...], xs: np.ndarray, ys: np.ndarray, radii: np.ndarray, window: tuple[int, ...]
) -> np.ndarray:
    """Coverage (S, R, h, w) of the window's pixels by the shapes, as the renderer draws them."""
    height, width = window
    rows, columns = ((np.arange(n * SUPERSAMPLE) + 0.5) / SUPERSAMPLE for n in (height, width))
    x = (columns - xs[..., None]) / radii[..., None]  # (S, R, w * SUPERSAMPLE)
    y = (rows - ys[..., None]) / radii[..., None]
    masks = np.stack([inside(s, x[i, :, None, :], y[i, :, :, None]) for i, s in enumerate(shapes)])
    return _pooling(height) @ masks.astype(np.float32) @ _pooling(width).T


@cache
def _pooling(length: int) -> np.ndarray:
    """Mean over SUPERSAMPLE neighbours as a matrix (length, length * SUPERSAMPLE): products beat reductions."""
    return np.kron(np.eye(length, dtype=np.float32), np.full((1, SUPERSAMPLE), 1 / SUPERSAMPLE, np.float32))


def blurred(images: np.ndarray, widths: list[float]) -> np.ndarray:
    """Gaussian blurs (B, …, h, w) of (…, h, w) with nothing outside; matrices, since the windows are small."""
    height, width = images.shape[-2:]
    return np.stack([_gaussian(height, w) @ images @ _gaussian(width, w) for w in widths])


@cache
def _gaussian(length: int, width: float) -> np.ndarray:
    if width < 0.05:
        return np.eye(length, dtype=np.float32)
    offsets = np.arange(length)[:, None] - np.arange(length)
    reach = np.arange(-np.ceil(4 * width), np.ceil(4 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2) / np.exp(-0.5 * (reach / width) ** 2).sum()
    return kernel.astype(np.float32)


def soft_iou(alpha: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Soft intersection over union (…) of ``alpha`` (h, w) with ``fits`` (…, h, w) at their best contrast."""
    flat, target = fits.reshape(-1, alpha.size), alpha.ravel().astype(np.float32)
    squared = np.maximum(np.einsum("kp,kp->k", flat, flat), 1e-9)
    contrast = np.clip(flat @ target / squared, 0.6, 1.1)
    flat = flat * contrast[:, None]
    shared = np.minimum(target, flat).sum(1)
    return (shared / (target.sum() + flat.sum(1) - shared)).reshape(fits.shape[:-2])
