"""Muon whose matrices of one shape are orthogonalised together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of the matrices that are orthogonalised together: bounds their copies. A larger matrix comes alone.
TOGETHER = 1 << 22


class Muon(torch.optim.Muon):
    """torch's Muon, with the same settings, states and steps: one product of many matrices for many of one matrix each.

    torch's own takes some 40 operations a matrix and step; a network of small blocks has hundreds of matrices, and a
    GPU then waits for the host. The same numbers but for the order in which the products are summed.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, weights, gradients, momenta)
            for alike in _together(weights):
                _update(
                    [weights[i] for i in alike],
                    [gradients[i] for i in alike],
                    [momenta[i] for i in alike],
                    group,
                )
        return loss


def _together(weights: list[Tensor]) -> Iterator[list[int]]:
    """Places of matrices of one shape, dtype and device, :data:`TOGETHER` elements at most."""
    kinds: dict[Any, list[int]] = {}
    for i, weight in enumerate(weights):
        kinds.setdefault((weight.shape, weight.dtype, weight.device), []).append(i)
    for places in kinds.values():
        count = max(1, TOGETHER // max(1, weights[places[0]].numel()))
        for start in range(0, len(places), count):
            yield places[start : start + count]


def _update(
    weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
) -> None:
    torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
    steps = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
    turned = orthogonal(
        torch.stack(steps), group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"]
    )
    rate = torch.optim._muon._adjust_lr(group["lr"], group["adjust_lr_fn"], weights[0].shape)
    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, turned.to(weights[0].dtype).unbind(), alpha=-rate)


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float
) -> Tensor:
    """``matrices`` (K, M, N) with all their singular values near 1, bf16: Newton and Schulz's iteration of degree 5
    (Jordan et al., Muon, 2024)."""
    a, b, c = coefficients
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
