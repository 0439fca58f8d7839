"""Sharded parameters as plain tensors: their slices here, and the whole of them for a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """What of ``tensor`` is kept in this process: it shares its memory. A plain tensor is all here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def leaf(parameter: nn.Parameter) -> nn.Parameter:
    """A plain parameter over the slice of ``parameter`` that is here, for an optimiser; a plain one itself."""
    if not isinstance(parameter, DTensor):
        return parameter
    return nn.Parameter(local(parameter).detach())


@dataclass(frozen=True)
class Cut:
    """Of what a slice is one: the ``shape`` of the whole, and the processes that hold the others."""

    shape: torch.Size
    group: dist.ProcessGroup

    @classmethod
    def of(cls, parameter: DTensor) -> Cut:
        """All are cut along their first dimension."""
        dimension = next(i for i, place in enumerate(parameter.placements) if place.is_shard(0))
        return cls(parameter.shape, parameter.device_mesh.get_group(dimension))

    def add_up(self, part: Tensor) -> Tensor:
        """``part`` of this process, in place plus those of the others."""
        dist.all_reduce(part, group=self.group)
        return part


def sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def sharded_parameters(network: nn.Module) -> dict[str, DTensor]:
    """Parameters that are cut, by name."""
    return {name: p for name, p in network.named_parameters() if isinstance(p, DTensor)}


@torch.no_grad()
def slice_of(whole: Tensor, like: DTensor) -> Tensor:
    """The part of ``whole`` that this process keeps of a parameter that is cut as ``like`` is; nothing is sent."""
    cut = distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return cut.to_local()


def as_cut(part: Tensor, like: DTensor) -> DTensor:
    """The tensor whose slice here is ``part``, which stays where it is (``DTensor.from_local`` would copy slices that
    are kept on the host to the GPU)."""
    meta = TensorMeta(shape=like.shape, stride=like.stride(), dtype=part.dtype)
    spec = DTensorSpec(like.device_mesh, like.placements, tensor_meta=meta)
    return DTensor(part, spec, requires_grad=False)  # type: ignore[call-arg]


class Replaced(nn.Module):
    """``network`` with other values in some of its weights, for the length of each call; it holds no weights.

    ``swap`` exchanges them, and is called before and after: so a copy costs slices alone, and blocks are put together
    from them as ever.
    """

    def __init__(
        self, network: nn.Module, weights: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        # In a tuple: no submodule, so that its parameters are listed once.
        self._network, self._weights, self._values = (network,), weights, values

    def forward(self, *arguments: object) -> Tensor:
        with self._in_place() as network:
            return network(*arguments)

    def features(self, *arguments: object) -> list[Tensor]:
        with self._in_place() as network:
            return network.features(*arguments)  # type: ignore[operator]

    @contextmanager
    def _in_place(self) -> Iterator[nn.Module]:
        if torch.is_grad_enabled():
            raise RuntimeError("a copy of sharded weights has no gradient: call it under torch.no_grad")
        (network,) = self._network
        reshard(network)
        exchange(self._weights, self._values)
        try:
            yield network
        finally:
            reshard(network)
            exchange(self._weights, self._values)


def reshard(network: nn.Module) -> None:
    """Let go of all that is put together, so that the next call sees the slices as they are then."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def exchange(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Exchange what tensors of the same names hold; twice is nothing."""
    if any(weight.is_pinned() for weight in weights.values()):
        torch.cuda.synchronize()  # slices of the host that a call before this may still be copying to the GPU
    for name, value in values.items():
        kept = weights[name].detach().clone()
        weights[name].copy_(value)
        value.copy_(kept)


@contextmanager
def whole(network: nn.Module, *, keep: bool) -> Iterator[None]:
    """Plain parameters on the host instead of the cut ones, where ``keep``, for the length of a block (to save them).

    Every process has to enter it: parameters are gathered one at a time. The network can't be called inside.
    """
    plain: dict[int, nn.Parameter] = {}
    for cut in sharded_parameters(network).values():
        full = cut.full_tensor().detach()
        if keep:
            plain[id(cut)] = nn.Parameter(full.cpu(), requires_grad=cut.requires_grad)
    kept = []
    for module in network.modules() if keep else ():
        for name, parameter in module._parameters.items():
            if id(parameter) in plain:
                kept.append((module, name, parameter))
    for module, name, parameter in kept:
        module._parameters[name] = plain[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter
