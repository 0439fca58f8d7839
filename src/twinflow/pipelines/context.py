"""Several processes for the tokens of one row: diffusers' context parallelism (Ulysses), for training.

Each process computes with its part of the tokens; in attention the parts of all are exchanged for all tokens of some
of the heads (arXiv 2309.14509). What is cut and put together again is diffusers' own plan of the family, ``_cp_plan``:
at the end of a call every process has the whole output. A loss of it is then the same in all, and what reaches the
weights of a process is the part of its own tokens: the gradient is the *sum* over the processes of a row.

diffusers takes the processes' device from the accelerator that is there, and so fails on a CPU; here the mesh says it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from twinflow.errors import TwinflowError

# Transformers whose training in several processes equals that in one (tests/training/test_context.py). Others have a
# plan as well, but: LTX's masks are of all heads, where a process has some; Qwen-Image's prompts, which are divided
# too, are as long as they happen to be.
CHECKED = ("WanTransformer3DModel", "FluxTransformer2DModel")


def check_divisible(kind: type, config: Any, *, count: int) -> None:
    """:class:`TwinflowError` unless transformers of ``kind`` can divide their tokens among ``count`` processes."""
    if not divisible(kind):
        raise TwinflowError(
            f"parallel.context = {count}: tokens can be divided of {', '.join(CHECKED)}, not of {kind.__name__}: set "
            "it to 1, and parallel.mode to 'shard' for less memory"
        )
    heads = config.get("num_attention_heads")
    if heads is not None and heads % count:
        raise TwinflowError(
            f"parallel.context = {count} does not divide the {heads} attention heads of {kind.__name__}: use one of "
            f"{', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
        )


def divisible(kind: type) -> bool:
    """Whether transformers of ``kind`` can divide their tokens at all; of a subclass, if those of its parent can."""
    names = {parent.__name__ for parent in kind.__mro__}
    return getattr(kind, "_cp_plan", None) is not None and not names.isdisjoint(CHECKED)


def check_network(network: nn.Module, *, count: int) -> None:
    """:func:`check_divisible` of the transformer in ``network``."""
    transformer = getattr(network, "transformer", network)
    check_divisible(type(transformer), getattr(transformer, "config", {}), count=count)


def divide_tokens(networks: Iterable[nn.Module], *, count: int, device: torch.device) -> None:
    """Let the transformers in ``networks`` compute with this process's part of the tokens, in place.

    ``count`` successive processes share rows; all have to call this, once. Copies of a network have to be made before:
    what diffusers puts into one refers to it alone.
    """
    shape = (dist.get_world_size() // count, 1, count)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "ring", "ulysses"))
    for network in networks:
        for transformer in network.modules():
            if divisible(type(transformer)):
                _divide(transformer, mesh)


def _divide(transformer: Any, mesh: DeviceMesh) -> None:
    from diffusers import ContextParallelConfig

    count, device = mesh["ulysses"].size(), torch.device(mesh.device_type)

    def resolved(config: Any) -> Any:
        from diffusers import ParallelConfig

        both: Any = ParallelConfig(context_parallel_config=config)
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
