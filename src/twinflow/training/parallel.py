"""How the weights of a run lie in its processes: whole in each, or in shards (FSDP2).

Sharded weights are ``DTensor``: each process keeps a slice of every parameter, and blocks are put together only while
they compute. Optimisers, averages and checkpoints work on the slices, which are plain tensors; see
:func:`twinflow.training.shards.local`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.utils import get_total_norm

from twinflow.errors import TwinflowError
from twinflow.objectives import FlowMatching, Objective
from twinflow.pipelines.blocks import repeated_blocks
from twinflow.recipes.sections import Model, Optimizer, Parallel, Recipe
from twinflow.training.dtype_groups import placement_of
from twinflow.training.ema import ParameterAverage
from twinflow.training.handing_out import elsewhere, hand_out
from twinflow.training.processes import Processes
from twinflow.training.shards import reshard, whole


class Replicated:
    """Every process has all weights; gradients are averaged."""

    sharded = False

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self._processes, self.device = processes, device

    def place(self, network: nn.Module) -> None:
        """It is whole already, or is received from the process that has read it."""
        together = elsewhere(network)
        if together is not None:
            originals = dict(network.named_parameters()) if together.here else {}
            hand_out(network, originals, device=self.device, together=together)

    def whole(
        self, network: nn.Module, average: ParameterAverage | None, *, keep: bool
    ) -> AbstractContextManager[None]:
        """See :meth:`Sharded.whole`; there is nothing to gather."""
        return nullcontext()

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by its mean over all processes."""
        self._processes.average(gradients)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """() of all ``gradients`` together."""
        return get_total_norm(gradients)

    def total(self, square: Tensor) -> Tensor:
        """See :meth:`Sharded.total`; it is all here."""
        return square


class Sharded:
    """Every process has a slice of each parameter.

    ``mesh``: one dimension, or ("replicate", "shard"): slices are those of the processes of a row, and rows hold
    the same (HSDP).
    """

    sharded = True

    def __init__(self, mesh: DeviceMesh, settings: Recipe) -> None:
        self.mesh, self.settings = mesh, settings

    def place(self, network: nn.Module) -> None:
        """Cut ``network`` in place, block by block. Names of parameters stay what they are."""
        parallel = self.settings.parallel
        offload = OffloadPolicy()
        if parallel.cpu_offload:
            offload = CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda")
        options: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": precision_policy(self.settings),
            "reshard_after_forward": parallel.reshard_after_forward,
            "offload_policy": offload,
            "shard_placement_fn": placement_of(network, self.mesh),
        }
        together = elsewhere(network)
        originals = dict(network.named_parameters()) if together is not None and together.here else {}
        try:
            for block in repeated_blocks(network):
                fully_shard(block, **options)
            fully_shard(network, **options)
        except ValueError as error:
            raise TwinflowError(f"parallel.mode: the network can't be sharded: {error}") from error
        if together is not None:
            kept = torch.device("cpu") if parallel.cpu_offload else None
            device = torch.device(self.mesh.device_type)
            hand_out(network, originals, device=device, together=together, kept=kept)

    @contextmanager
    def whole(self, network: nn.Module, average: ParameterAverage | None, *, keep: bool) -> Iterator[None]:
        """``network`` with plain, averaged weights on the host, where ``keep``, to be saved; all have to enter."""
        reshard(network)
        if average is not None:
            average.swap()
        with whole(network, keep=keep):
            if average is not None:
                average.swap()
            yield

    def average(self, gradients: Sequence[Tensor]) -> None:
        """The backward pass has averaged them."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """() of the slices ``gradients`` of all processes together."""
        device = gradients[0].device if gradients else torch.device(self.mesh.device_type)
        square = torch.zeros((), device=device)
        if gradients:
            norms = torch._foreach_norm(list(gradients), 2, torch.float32)
            square = torch.stack(list(norms)).square().sum()
        return self.total(square).sqrt()

    def total(self, square: Tensor) -> Tensor:
        """() of a sum over the slices of this process, that over the slices of all; ``square`` is overwritten."""
        dist.all_reduce(square, group=self.mesh.get_group("shard"))
        return square


Layout = Replicated | Sharded


def precision_policy(recipe: Recipe) -> MixedPrecisionPolicy:
    """What blocks are put together in, and gradients added up in.

    Inputs are never cast: among them are times, which stay fp32. Under autocast fp32 weights would be cast where they
    are used; they are cast before they travel instead.
    """
    cast = recipe.train.precision == "bf16" and recipe.model.dtype == "fp32"
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if cast else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def place_of(recipe: Recipe, objective: Objective) -> Processes:
    """This process's place among those of the run, some of which may share rows (``parallel.context``).

    :class:`TwinflowError` if these processes can't. A single one has its rows for itself, whatever is asked for.
    """
    processes, count = Processes.current(), recipe.parallel.context
    if count == 1 or processes.world_size == 1:
        return processes
    check_context(
        count,
        world=processes.world_size,
        reason=not_divided(recipe.model, objective, compiled=bool(recipe.train.compile)),
    )
    return replace(processes, context=count)


def check_layout(recipe: Recipe, objective: Objective, device: torch.device) -> tuple[Processes, int]:
    """This process's place, and among how many processes weights are divided: :class:`TwinflowError` for what they
    can't form, before anything is loaded."""
    place = place_of(recipe, objective)
    return place, shards_of(recipe, objective, place, device)


def check_context(count: int, *, world: int, reason: str) -> None:
    """:class:`TwinflowError` unless ``count`` of ``world`` processes can share a row; ``reason``: see
    :func:`not_divided`."""
    if reason:
        raise TwinflowError(f"parallel.context = {count}: {reason}, or set parallel.context to 1")
    if world % count:
        raise TwinflowError(
            f"parallel.context = {count} does not divide the {world} processes of this run: use one of "
            f"{', '.join(str(n) for n in range(1, world + 1) if world % n == 0)}"
        )


def not_divided(model: Model, objective: Objective, *, compiled: bool) -> str:
    """Why processes can't share rows of what these settings train, with a remedy; empty if they can."""
    name = type(objective).__name__
    if model.part != "transformer":
        return f"model.part = {model.part!r} has no tokens to divide: use model.part = 'transformer'"
    if objective.networks():
        return f"{name} trains or keeps other networks ({', '.join(objective.networks())}): use another objective"
    if not _calls_by_roles(objective):
        return f"{name} differentiates calls in ways that divided ones can't: use another objective"
    if compiled:
        return "it was never run with train.compile: set that to false"
    return ""


def layout_of(recipe: Recipe, objective: Objective, processes: Processes, device: torch.device) -> Layout:
    """The layout that ``recipe.parallel`` asks for; :class:`TwinflowError` if these processes can't form it.

    A single process holds everything, whatever is asked for.
    """
    world, count = processes.world_size, shards_of(recipe, objective, processes, device)
    if count == 1:
        return Replicated(processes, device)
    if hasattr(objective, "lockstep"):
        objective.lockstep = True  # or a process would wait for slices that another one does not send
    if recipe.parallel.mode != "hybrid":
        return Sharded(init_device_mesh(device.type, (world,), mesh_dim_names=("shard",)), recipe)
    shape = (world // count, count)
    return Sharded(init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard")), recipe)


def shards_of(recipe: Recipe, objective: Objective, processes: Processes, device: torch.device) -> int:
    """:func:`shard_count` of a run in these processes."""
    world = processes.world_size
    return shard_count(
        recipe.parallel,
        world=world,
        machine=int(os.environ.get("LOCAL_WORLD_SIZE", world)),
        by_itself=device.type == "cuda" and recipe.model.train == "full",
        reason=not_sharded(recipe.model, recipe.optimizer, objective),
    )


def shard_count(settings: Parallel, *, world: int, machine: int, by_itself: bool, reason: str) -> int:
    """Among how many of ``world`` processes the weights are divided; 1 where each holds them all.

    ``machine``: processes of one machine. ``by_itself``: whether mode "auto" shards what can be. ``reason``: why this
    can't be sharded, see :func:`not_sharded`. :class:`TwinflowError` where the settings ask for it all the same, or for
    a mesh that these processes can't form.
    """
    mode = settings.mode
    if mode == "auto":
        mode = "shard" if by_itself and not reason else "replicate"
    if mode == "replicate" or world == 1:
        return 1
    if reason:
        raise TwinflowError(
            f"parallel.mode = {settings.mode!r}: {reason}, or set parallel.mode to 'replicate'"
        )
    if mode == "shard":
        return world
    size = settings.shard_size or machine
    if world % size:
        raise TwinflowError(
            f"parallel.shard_size = {size} does not divide the {world} processes of this run: use one of "
            f"{', '.join(str(n) for n in range(1, world + 1) if world % n == 0)}"
        )
    return size


def not_sharded(model: Model, optimizer: Optimizer, objective: Objective) -> str:
    """Why what these settings train can't be sharded, with a remedy; empty if it can."""
    name = type(objective).__name__
    if model.part != "transformer":
        return f"model.part = {model.part!r} is small, and is not sharded: use model.part = 'transformer'"
    if model.quantize is not None:
        return f"weights of model.quantize = {model.quantize!r} can't be cut: set it to null"
    if optimizer.name == "muon":
        return (
            "optimizer.name = 'muon' orthogonalises whole matrices: use adamw, radam, adafactor, adamw8bit or "
            "adamw4bit"
        )
    if objective.networks():
        return f"{name} trains or keeps other networks ({', '.join(objective.networks())}), which are not sharded"
    if not _calls_by_roles(objective):
        return f"{name} does not call the network equally often in all processes: use another objective"
    return ""


def _calls_by_roles(objective: Objective) -> bool:
    """Whether ``objective`` calls one network, once with gradient, and can do so equally often in all processes."""
    return hasattr(objective, "lockstep") or isinstance(objective, FlowMatching)
