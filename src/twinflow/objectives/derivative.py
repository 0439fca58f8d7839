"""Derivatives along a direction, by forward-mode differentiation or by a finite difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from twinflow.flow import expand_time

Mode = Literal["auto", "forward", "finite"]
MODES = ("auto", "forward", "finite")
# What errors of operations without a forward derivative say.
_MISSING = ("forward ad", "forward-mode", "jvp", "functorch", "setup_context", "vmap")


@torch.no_grad()
def directional_derivative(
    function: Callable[..., Tensor],
    at: tuple[Tensor, ...],
    along: tuple[Tensor, ...],
    *,
    value: Tensor,
    mode: Mode,
    delta: float | Tensor,
) -> Tensor:
    """d/dh ``function(at + h along)`` at h = 0, of the shape of ``value`` = ``function(at)`` (B, …); no gradient.

    ``"forward"``: exact, one evaluation that carries the derivative along, at three times the cost of a plain one
    in linear layers, for torch also asks how the constant weights change; attention is computed by torch's
    plain kernel, the only one that has this derivative. ``"finite"``:
    ``(function(at) - function(at - delta along)) / delta``, one plain evaluation; off by O(delta), and by the
    rounding of the network over delta, which may be a number or one a row (B,). ``"auto"``: forward if every
    operation of the network has such a derivative, else finite.
    """
    if mode != "finite":
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return torch.func.jvp(function, at, along)[1]
        except (NotImplementedError, RuntimeError) as error:
            missing = any(word in str(error).lower() for word in _MISSING)
            if mode == "forward" or not missing:
                raise
    step = delta if isinstance(delta, Tensor) else torch.full_like(value.flatten(1)[:, 0], delta)
    before = function(*(a - expand_time(step, a) * d for a, d in zip(at, along, strict=True)))
    return (value - before) / expand_time(step, value)


def check_derivative(mode: str, delta: float) -> None:
    """Raise ``ValueError`` unless :func:`directional_derivative` knows the settings."""
    if mode not in MODES:
        raise ValueError(f"derivative must be one of {', '.join(MODES)}, got {mode!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta!r}")
