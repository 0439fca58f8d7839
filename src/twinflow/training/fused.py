"""Arithmetic of updates as few kernels on a GPU: torch.compile puts together what is written operation by operation.

An update of weights in few bits is some fifty operations, each of which would read and write its elements once: at 20 B
parameters seconds a step, where the elements themselves are moved in a tenth of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

logger = logging.getLogger(__name__)
Numbers = (
    tuple[float, ...] | Tensor
)  # the tensor (N,) fp32, so that another learning rate compiles nothing anew


class Fused:
    """``work(numbers, tensor, …)``, a function of tensors that changes none of them; compiled where ``tensor`` is on a
    GPU. The second size that comes makes a kernel of any size. What can't be compiled (no compiler, say) is
    done as it is written, with a warning.
    """

    everywhere = False  # on the CPU too, for tests

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work = work
        self._compiled: Callable[..., Any] | None = None
        self._given: tuple[tuple[float, ...], Tensor] | None = None
        self._failed = False

    def __call__(self, numbers: tuple[float, ...], tensor: Tensor, *others: Any) -> Any:
        here = tensor.is_cuda or self.everywhere
        if not here or self._failed or is_in_torch_dispatch_mode():  # which counts operations, say
            return self.work(numbers, tensor, *others)
        if self._compiled is None:
            self._compiled = torch.compile(self.work, fullgraph=True)
        try:
            return self._compiled(self._on_device(numbers, tensor.device), tensor, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever the compiler raises
            first = str(error).strip().partition("\n")[0]
            logger.warning("updates are not compiled, and slow: %s: %s", type(error).__name__, first)
            self._failed = True
            return self.work(numbers, tensor, *others)

    def _on_device(self, numbers: tuple[float, ...], device: torch.device) -> Tensor:
        """The same tensor for all chunks of a parameter, so that it is sent once."""
        if self._given is None or self._given[0] != numbers or self._given[1].device != device:
            sent = torch.tensor(numbers, dtype=torch.float32).to(device, non_blocking=True)
            self._given = (numbers, sent)
        return self._given[1]


def each(numbers: Numbers) -> tuple[Any, ...]:
    """``numbers`` one by one: floats, or () tensors."""
    return numbers.unbind() if isinstance(numbers, Tensor) else numbers
