"""Tensors that autograd keeps for the backward pass, kept on the host instead of the device.

Around a forward whose blocks are checkpointed these are the inputs of the blocks. torch's ``save_on_cpu`` would take
the weights along that layers outside of blocks keep; they are on the device anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1 << 16  # elements; moving less costs more than it frees


def offloaded(parameters: Iterable[nn.Parameter]) -> torch.autograd.graph.saved_tensors_hooks:
    """A context: large tensors that are kept inside go to the host, all but ``parameters``."""
    weights = {parameter.untyped_storage()._cdata for parameter in parameters}

    def pack(tensor: Tensor) -> Any:
        if tensor.numel() < SMALLEST or tensor.untyped_storage()._cdata in weights:
            return tensor
        packed = torch.empty(
            tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda
        )
        packed.copy_(tensor, non_blocking=tensor.is_cuda)
        return tensor.device, packed

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, tensor = packed
        return tensor.to(device, non_blocking=tensor.is_pinned())

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
