"""Weights of several dtypes under FSDP2, which cuts and adds up those of one block together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from twinflow.errors import TwinflowError


def placement_of(network: nn.Module, mesh: DeviceMesh) -> Callable[[nn.Parameter], Any] | None:
    """FSDP2 adds up the gradients of a block together, which have to be of one dtype. Some families keep a few
    weights in fp32 whatever the others are (Wan: norms, tables, the time MLP): those travel apart, by a mesh of
    their own."""
    counts: dict[torch.dtype, int] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    if len(counts) < 2:
        return None
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import ShardPlacementResult
    except ImportError as error:  # older versions have one group for all of a block
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in counts))
        raise TwinflowError(
            f"torch {torch.__version__} can't shard weights of several dtypes ({kinds}): update it (2.13 can), or set "
            "model.dtype=fp32 with train.precision=bf16"
        ) from error

    most = max(counts, key=lambda dtype: counts[dtype])
    meshes = {dtype: _like(mesh) for dtype in counts if dtype != most}

    def placement(parameter: nn.Parameter) -> Any:
        if not parameter.requires_grad or parameter.dtype == most:
            return None
        return ShardPlacementResult(placement=None, mesh_info=meshes[parameter.dtype])

    return placement


def _like(mesh: DeviceMesh) -> Any:
    """FSDP2's note of a mesh of the same processes as ``mesh``, in groups of its own."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo

    if mesh.ndim == 1:
        names = mesh.mesh_dim_names
        other = DeviceMesh.from_group(dist.new_group(), mesh.device_type, mesh_dim_names=names)
        return FSDPMeshInfo(mesh=other, shard_mesh_dim=0)
    other = init_device_mesh(mesh.device_type, mesh.shape, mesh_dim_names=mesh.mesh_dim_names)
    return HSDPMeshInfo(mesh=other, replicate_mesh_dim=0, shard_mesh_dim=1)
