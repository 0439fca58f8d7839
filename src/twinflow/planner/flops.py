"""Floating-point operations of a single tensor operation: matrix products, convolutions and attention.

torch's own counter is the base. It lacks the CPU's fused attention, which fake tensors on the CPU use, and it
ignores the groups of a convolution's backward, which makes depthwise ones (SANA's) dear by the number of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Multiplications and additions that ``func`` does; 0 for what only moves or maps elements."""
    packet = getattr(func, "_overloadpacket", None)
    own = _OWN.get(packet)
    if own is not None:
        return own(args, out)
    known = flop_registry.get(packet)
    return int(known(*args, **kwargs, out_val=out)) if known is not None else 0


def _attention(args: Any, out: Any) -> int:
    """Two products, queries by keys and weights by values."""
    query, key, value = args[:3]
    *batch, length, width = query.shape
    return 2 * prod(batch) * length * key.shape[-2] * (width + value.shape[-1])


def _attention_backward(args: Any, out: Any) -> int:
    """Five products: the scores are made again."""
    return _attention(args[1:4], out) * 5 // 2


def _convolution_backward(args: Any, out: Any) -> int:
    """As many as forward for each of the two gradients that are asked for."""
    grad, picture, weight = args[:3]
    transposed, mask = args[7], args[10]
    # Each element of the output, or of the input of a transposed one, meets a whole filter of its group.
    elements = (picture if transposed else grad).numel()
    return 2 * elements * prod(weight.shape[1:]) * (int(mask[0]) + int(mask[1]))


def _convolution(args: Any, out: Tensor) -> int:
    picture, weight, transposed = args[0], args[1], args[6]
    return 2 * (picture if transposed else out).numel() * prod(weight.shape[1:])


_OWN: dict[Any, Callable[[Any, Any], int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}
