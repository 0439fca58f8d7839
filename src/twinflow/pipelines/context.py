"""Several processes for the tokens of one row: diffusers' context parallelism (Ulysses), for training.

Each process computes with its part of the tokens; in attention the parts of all are exchanged for all tokens of some
of the heads (arXiv 2309.14509). What is cut and put together again is diffusers' own plan of the family, ``_cp_plan``:
at the end of a call every process has the whole output. A loss of it is then the same in all, and what reaches the
weights of a process is the part of its own tokens: the gradient is the *sum* over the processes of a row.

diffusers takes the processes' device from the accelerator that is there, and so fails on a CPU; here the mesh says it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from twinflow.errors import TwinflowError


def context_mesh(*, count: int, device: torch.device) -> DeviceMesh:
    """All processes, ``count`` successive ones of which share rows; all of them have to call this."""
    shape = (dist.get_world_size() // count, 1, count)
    return init_device_mesh(device.type, shape, mesh_dim_names=("data", "ring", "ulysses"))


def check_divisible(kind: type, config: Any, *, count: int) -> None:
    """:class:`TwinflowError` unless transformers of ``kind`` can divide their tokens among ``count`` processes."""
    if getattr(kind, "_cp_plan", None) is None:
        raise TwinflowError(
            f"parallel.context = {count}: diffusers has no plan to divide the tokens of {kind.__name__}: set it to 1, "
            "and parallel.mode to 'shard' for less memory"
        )
    heads = config.get("num_attention_heads")
    if heads is not None and heads % count:
        raise TwinflowError(
            f"parallel.context = {count} does not divide the {heads} attention heads of {kind.__name__}: use one of "
            f"{', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
        )


def divide_tokens(network: nn.Module, mesh: DeviceMesh) -> None:
    """Let the transformers in ``network`` compute with this process's part of the tokens, in place.

    Copies of a network have to be made before: what diffusers puts into it refers to it alone.
    """
    for transformer in network.modules():
        if getattr(type(transformer), "_cp_plan", None) is not None and hasattr(
            transformer, "enable_parallelism"
        ):
            _divide(transformer, mesh)


def _divide(transformer: Any, mesh: DeviceMesh) -> None:
    from diffusers import ContextParallelConfig

    count, device = mesh["ulysses"].size(), torch.device(mesh.device_type)

    def resolved(config: Any) -> Any:
        from diffusers import ParallelConfig

        both = ParallelConfig(context_parallel_config=config)
        both.setup(dist.get_rank(), dist.get_world_size(), device, mesh=mesh)
        transformer._parallel_config = both
        return both

    transformer.__dict__["_resolve_parallel_config"] = resolved
    with _quiet():
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, mesh=mesh))
    del transformer.__dict__["_resolve_parallel_config"]
    stock = transformer.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        try:
            return stock(*arguments, **named)
        except AssertionError as error:
            if "divisible" not in str(error):
                raise
            raise TwinflowError(
                f"parallel.context = {count} does not divide the tokens of a call of {type(transformer).__name__}: "
                "choose another size of pictures, number of frames or length of prompts (model.call), or "
                "parallel.context = 1"
            ) from error

    transformer.__dict__["forward"] = forward


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the note that this is experimental: tests compare it with one process."""
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
