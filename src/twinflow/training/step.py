"""One optimiser step: forward and backward of its micro-batches, the clip, the update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from twinflow.data.loader import EncodedBatch
from twinflow.objectives import Field, Objective, Step
from twinflow.training.finite import FiniteGuard
from twinflow.training.optim import Optimizers
from twinflow.training.processes import Processes


class AutocastField:
    """A field whose calls are autocast, each on its own; attributes are those of the field.

    On its own, because autocast keeps the weights that it has cast until it is left: a cast made without
    gradient, for a teacher, would be used again for the student, which would then get none.
    """

    def __init__(self, field: Field, *, device: torch.device, dtype: torch.dtype) -> None:
        self._field, self._device, self._dtype = field, device, dtype

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(self._device.type, dtype=self._dtype):
            return self._field(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)


@dataclass(kw_only=True)
class OptimizerStep:
    """What an optimiser step needs besides its data."""

    field: Field
    teacher: Field | None
    objective: Objective
    optimizers: Optimizers
    parameters: Sequence[nn.Parameter]
    processes: Processes
    guard: FiniteGuard
    generator: Generator
    clip: float | None

    def __call__(
        self, step: int, batches: Iterable[EncodedBatch], *, count: int, lr: float
    ) -> tuple[list[Step], Tensor]:
        """Update the weights by the mean loss of ``count`` micro-batches; their results, and the gradient's norm."""
        results = []
        for batch in batches:
            result = self.objective.step(
                self.field,
                batch.x,
                batch.cond,
                uncond=batch.uncond,
                teacher=self.teacher,
                generator=self.generator,
            )
            self.guard.loss(step, result)
            (result.loss / count).backward()
            results.append(result)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.processes.average(gradients)
        norm = get_total_norm(gradients)
        self.guard.gradient(step, norm, results)
        if self.clip is not None:
            clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizers.step(lr=lr)
        self.optimizers.zero_grad()
        return results, norm


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor or condition on ``device``."""
    if value is None:
        return None
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return type(value)(to_device(item, device) for item in value)
