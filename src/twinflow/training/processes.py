"""The processes of a run: one here, several under ``torchrun``; the same code either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's place among ``world_size``.

    ``context``: so many successive ones divide the tokens of the same rows; the groups of them are data-parallel.
    """

    rank: int = 0
    world_size: int = 1
    context: int = 1
    _sharing: list[bool] = field(default_factory=list, compare=False)  # not empty inside of shared work

    @classmethod
    def current(cls, *, context: int = 1) -> Processes:
        """That of ``torch.distributed`` where it is initialised, else a single one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), context)
        return cls()

    @property
    def data_rank(self) -> int:
        """Which rows, roles and random numbers are this one's."""
        return self.rank // self.context

    @property
    def data_count(self) -> int:
        """How many different ones there are."""
        return self.world_size // self.context

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and talks to the user."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
            torch._foreach_div_(list(tensors), self.world_size)

    def gather(self, tensors: dict[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
        """What each process calls this with, by rank, on the host; the same names and shapes in all."""
        if self.world_size == 1:
            return [tensors]
        gathered: list[dict[str, Tensor]] = [{} for _ in range(self.world_size)]
        for name, tensor in tensors.items():
            parts = [torch.empty_like(tensor, device=device) for _ in range(self.world_size)]
            dist.all_gather(parts, tensor.to(device))
            for rank, part in enumerate(parts):
                gathered[rank][name] = part.cpu()
        return gathered

    def share(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns in the first process, in all of them; what it raises there, they raise too.

        Inside of ``work`` nothing is shared. Tensors come on the device that they are on there.
        """
        if self.world_size == 1 or self._sharing:
            return work()
        said: list[Any] = [None]
        if self.is_main:
            self._sharing.append(True)
            try:
                said = [(work(), None)]
            except Exception as error:
                dist.broadcast_object_list([(None, f"{type(error).__name__}: {error}")])
                raise
            finally:
                self._sharing.clear()
        dist.broadcast_object_list(said)
        value, problem = said[0]
        if problem is not None:
            raise RuntimeError(f"in the first process: {problem}")
        return value

    def each(self, work: Callable[[], Any]) -> list[Any]:
        """What ``work`` returns in each process, by rank, in all of them; what it raises in one, all raise."""
        if self.world_size == 1:
            return [work()]
        mine: tuple[Any, str | None]
        failure: Exception | None = None
        try:
            mine = (work(), None)
        except Exception as error:
            mine, failure = (None, f"{type(error).__name__}: {error}"), error
        said: list[Any] = [None] * self.world_size
        dist.all_gather_object(said, mine)
        if failure is not None:
            raise failure
        for rank, (_, problem) in enumerate(said):
            if problem is not None:
                raise RuntimeError(f"in process {rank}: {problem}")
        return [value for value, _ in said]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether ``flag`` holds in any process: a stop that one of them is asked for stops them all."""
        if self.world_size == 1:
            return flag
        if "cpu:" in dist.get_backend_config():
            device = torch.device("cpu")  # asked by way of the host, which then waits for no GPU's work
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())
