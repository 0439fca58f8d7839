"""One optimiser step: forward and backward of its micro-batches, the clip, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from twinflow.data.loader import EncodedBatch
from twinflow.objectives import Field, Objective, Phase, Step, only_trained
from twinflow.training.finite import FiniteGuard
from twinflow.training.networks import Trained
from twinflow.training.offload import offloaded
from twinflow.training.parallel import Layout


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
        found = getattr(self._field, name)
        if name != "features":
            return found

        def features(*arguments: Any) -> Any:
            with torch.autocast(self._device.type, dtype=self._dtype):
                return found(*arguments)

        return features


@dataclass(kw_only=True)
class OptimizerStep:
    """What an optimiser step needs besides its data."""

    field: Field
    teacher: Field | None
    objective: Objective
    trained: Mapping[str, Trained]  # the student and other networks with an optimiser
    networks: Mapping[str, Any]  # what the objective has declared, as its step takes them
    layout: Layout
    guard: FiniteGuard
    generator: Generator
    clip: float | None
    dropout: Callable[[], AbstractContextManager[None]] = nullcontext  # around all calls for one micro-batch
    # What autograd keeps goes to the host, all but the weights of these networks; None: it stays.
    offload: Sequence[nn.Module] | None = None
    # Processes that share a row: each has a part of its gradient, so that the mean over all would be too small.
    sharing: int = 1

    def __call__(
        self,
        step: int,
        batches: Iterable[EncodedBatch],
        *,
        phase: Phase,
        count: int,
        lr: float,
    ) -> tuple[list[Step], Tensor]:
        """Update the networks of ``phase`` by the mean loss of ``count`` micro-batches.

        Returns their results, and the norm of the gradient of all these networks; each is clipped on its own.
        """
        some = [self.trained[name] for name in phase.trains]
        for own in some:
            own.optimizers.begin(lr=lr * own.lr)
        with only_trained({name: own.parameters for name, own in self.trained.items()}, phase.trains):
            results = self._backward(step, batches, count=count)
        early = [own.optimizers.in_backward for own in some if own.optimizers.in_backward is not None]
        if early:  # all of them: the weights have been updated
            norm = torch.stack([updates.finish() for updates in early]).norm()
            self.guard.gradient(step, norm, results)
            return results, norm
        of_each = [own.gradients() for own in some]
        gradients = [gradient for of_own in of_each for gradient in of_own]
        self.layout.average(gradients)
        norm = self.layout.norm(gradients)
        self.guard.gradient(step, norm, results)
        for own, of_own in zip(some, of_each, strict=True):
            if self.clip is not None:
                clip_grads_with_norm_(
                    own.leaves, self.clip, norm if len(some) == 1 else self.layout.norm(of_own)
                )
            own.update()
        return results, norm

    def _backward(self, step: int, batches: Iterable[EncodedBatch], *, count: int) -> list[Step]:
        others = {"networks": self.networks} if self.networks else {}
        results = []
        for batch in batches:
            with self.dropout():
                with nullcontext() if self.offload is None else offloaded(self.offload):
                    result = self.objective.step(
                        self.field,
                        batch.x,
                        batch.cond,
                        uncond=batch.uncond,
                        teacher=self.teacher,
                        generator=self.generator,
                        **others,
                    )
                self.guard.loss(step, result)
                (result.loss * self.sharing / count).backward()
            results.append(result)
        return results
