"""Slices for processes that have opened a network without weights: from the one that has them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from twinflow.pipelines.absent import Together, settle, together_of
from twinflow.training.shards import local, slice_of


def elsewhere(network: nn.Module) -> Together | None:
    """The processes that ``network`` was opened together with, if one of them has all weights."""
    return next((found for part in network.modules() if (found := together_of(part))), None)


@torch.no_grad()
def hand_out(
    network: nn.Module,
    originals: dict[str, nn.Parameter],
    *,
    device: torch.device,
    together: Together,
    kept: torch.device | None = None,
) -> None:
    """Fill ``network``, or its slices where it is cut, in all processes; every one has to call this.

    ``originals``: the whole parameters where they are; emptied. One of them at a time is whole elsewhere, on
    ``device``. ``kept``: where slices stay, if that is another device. Tables that modules have calculated for
    themselves become those of the first process too.
    """
    if not together.here:
        make_empty(network, parameters=kept or device, buffers=device)
    for name, parameter in network.named_parameters():
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        if together.here:
            whole = originals.pop(name).detach().to(device).contiguous()
        dist.broadcast(whole, 0)
        if not together.here:
            here = local(parameter)
            here.copy_(slice_of(whole, parameter) if isinstance(parameter, DTensor) else whole)
        del whole
    for buffer in network.buffers():
        _send(buffer)
    for part in network.modules():
        if together_of(part) is not None:
            settle(part)


def _send(buffer: Tensor) -> None:
    plain = torch.view_as_real(buffer) if buffer.is_complex() else buffer
    sent = plain.contiguous()
    dist.broadcast(sent, 0)
    plain.copy_(sent)


def make_empty(network: nn.Module, *, parameters: torch.device, buffers: torch.device) -> None:
    """Give all of ``network`` memory on these devices, in place, whatever is in it."""
    network.to_empty(device=parameters)
    for part in network.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device != buffers:
                part._buffers[name] = torch.empty_like(buffer, device=buffers)
