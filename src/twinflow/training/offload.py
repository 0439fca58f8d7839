"""Tensors that autograd keeps for the backward pass, kept on the host instead of the device.

Around a forward whose blocks are checkpointed these are the inputs of the blocks. torch's ``save_on_cpu`` would take
the weights along that layers outside of blocks keep; they are on the device anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.training.shards import sharded

SMALLEST = 1 << 16  # elements; moving less costs more than it frees


def offloaded(networks: Sequence[nn.Module]) -> torch.autograd.graph.saved_tensors_hooks:
    """A context: large tensors that are kept inside go to the host, all but the weights of ``networks``, trained or
    frozen. Those of sharded ones are put together in a call, and are asked for then."""
    weights = _storages(networks)
    cut = any(sharded(part) for network in networks for part in network.modules())

    def pack(tensor: Tensor) -> Any:
        if tensor.numel() < SMALLEST:
            return tensor
        own = tensor.untyped_storage()._cdata
        if own not in weights and cut:
            weights.update(_storages(networks))
        if own in weights:
            return tensor
        # With its strides: what is computed again from it has to come out as it did, those of its own parts too.
        packed = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        packed.copy_(tensor, non_blocking=tensor.is_cuda)
        return tensor.device, packed

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, tensor = packed
        return tensor.to(device, non_blocking=tensor.is_pinned())

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _storages(networks: Sequence[nn.Module]) -> set[int]:
    held = chain.from_iterable(chain(network.parameters(), network.buffers()) for network in networks)
    return {tensor.untyped_storage()._cdata for tensor in held}
