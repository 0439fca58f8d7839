"""Adapters and quantised layers as a step sees them: their shapes, and what autograd keeps of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from twinflow.pipelines.quantise import NF4_BLOCK, Kind
from twinflow.pipelines.reach import in_repeated_blocks

_SCALES_BLOCK = 256  # bitsandbytes keeps a byte for each NF4 block, and a number for so many of these


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA on those layers whose names ``on`` takes."""

    rank: int
    dropout: float
    on: Callable[[str], bool]

    def attach(self, module: nn.Module) -> None:
        """Put it on, in place; nothing else is trained then."""
        module.requires_grad_(False)
        for name, layer in list(module.named_modules()):
            if isinstance(layer, nn.Linear) and self.on(name):
                module.set_submodule(name, _Adapted(layer, self.rank, self.dropout))


class _Adapted(nn.Module):
    """A layer with a LoRA, as PEFT computes it: factors and their maths in fp32."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)
        self.dropout = dropout

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        given = x.to(self.lora_A.weight.dtype)
        if self.dropout:
            given = given * torch.ones(given.shape[-1], dtype=given.dtype)
        return (y + self.lora_B(self.lora_A(given)) * 1.0).to(y.dtype)


def quantise(module: nn.Module, kind: Kind) -> dict[Tensor, int]:
    """Let the Linears of blocks compute as :func:`twinflow.pipelines.quantise.quantise` makes them, in place.

    Returns the bytes of their weights, which keep their shapes here.
    """
    blocks, stored = in_repeated_blocks(module), dict[Tensor, int]()
    for name, layer in module.named_modules():
        if type(layer) is not nn.Linear or name not in blocks:
            continue
        if kind == "nf4" and layer.in_features % NF4_BLOCK:
            continue
        layer.__class__ = _Quantised
        stored[layer.weight] = stored_bytes(kind, layer.out_features, layer.in_features)
    module.requires_grad_(False)
    return stored


def stored_bytes(kind: Kind, outputs: int, inputs: int) -> int:
    """Of a quantised weight (outputs, inputs) with its scales."""
    count = outputs * inputs
    if kind == "int8":
        return count + outputs * (torch.float32.itemsize + torch.int8.itemsize)  # scale and zero point
    blocks = -(-count // NF4_BLOCK)
    return (count + 1) // 2 + blocks + torch.float32.itemsize * -(-blocks // _SCALES_BLOCK)


class _Quantised(nn.Linear):
    """Its weight is made anew for each product, forward and backward, and not kept."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.weight)
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.weight = weight
        return linear(x, torch.empty_like(weight, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ torch.empty_like(ctx.weight, dtype=gradient.dtype), None
