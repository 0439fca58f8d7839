"""The linear flow between data and noise, in the signed time of TwinFlow (arXiv 2512.05150).

``t`` runs over [-1, 1]. ``|t| = 1`` is noise and ``t = 0`` is data. ``t > 0`` is the trajectory of
real data and ``t < 0`` that of the model's own one-step samples; both share the path
``x_t = |t| z + (1 - |t|) x``, so every function here reads only ``|t|``.

Shapes: ``x, z, x_t, v`` are (B, …); ``t`` is (B,) fp32 and is broadcast over the other dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """Return ``t`` (B,) as (B, 1, …) so that it broadcasts against ``like`` (B, …).

    The result keeps at least fp32: times are never rounded to the dtype of the state.
    """
    if t.dim() != 1 or t.shape[0] != like.shape[0]:
        raise ValueError(
            f"t must have one time per row: expected shape ({like.shape[0]},), got {tuple(t.shape)}"
        )
    time_dtype = torch.promote_types(t.dtype, torch.float32)
    return t.to(time_dtype).reshape(-1, *([1] * (like.dim() - 1)))


def interpolate(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """State on the path between data ``x`` and noise ``z``: ``x_t = |t| z + (1 - |t|) x``."""
    u = expand_time(t, x).abs()
    return (u * z + (1 - u) * x).to(torch.promote_types(x.dtype, z.dtype))


def velocity(x: Tensor, z: Tensor) -> Tensor:
    """Conditional velocity of the path, ``dx_t / d|t| = z - x`` (noise minus data)."""
    return z - x


def data_estimate(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Data that the velocity ``v`` points to: ``x_hat = x_t - |t| v``. Exact for a path's own velocity."""
    return (x_t - expand_time(t, x_t).abs() * v).to(x_t.dtype)


def noise_estimate(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Noise that the velocity ``v`` comes from: ``z_hat = x_t + (1 - |t|) v``."""
    return (x_t + (1 - expand_time(t, x_t).abs()) * v).to(x_t.dtype)
