"""The copies of the network that a run keeps: one to draw with, one to learn from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from twinflow.pipelines.lora import has_lora
from twinflow.recipes.sections import Ema
from twinflow.training.ema import ParameterAverage, trained_parameters
from twinflow.training.shards import Replaced, local, sharded


@dataclass(kw_only=True)
class Averages:
    """``drawn`` for pictures and the saved pipeline, ``taught`` for a teacher that is an average.

    With equal decays they are one and the same. ``frozen`` is the initial network, for a teacher that is that:
    a copy, or what the network itself offers as one. Copies share with it what is not trained.
    """

    drawn: ParameterAverage | None = None
    taught: ParameterAverage | None = None
    frozen: nn.Module | None = None

    @classmethod
    def of(cls, network: nn.Module, settings: Ema, *, teacher: Literal["self", "ema", "frozen"]) -> Averages:
        """Copies of ``network`` as it is now: make them before a checkpoint changes its weights."""
        drawn = None
        if settings.decay > 0:
            drawn = ParameterAverage(
                network, decay=settings.decay, on_host=settings.on_host, every=settings.every
            )
        if teacher == "frozen":
            return cls(drawn=drawn, frozen=_frozen_twin(network))
        if teacher == "self":
            return cls(drawn=drawn)
        if drawn is not None and settings.decay == settings.teacher_decay:
            return cls(drawn=drawn, taught=drawn)
        return cls(drawn=drawn, taught=ParameterAverage(network, decay=settings.teacher_decay))

    @property
    def teacher(self) -> nn.Module | None:
        """The network of the teacher, where that is not the student itself."""
        return self.taught.network if self.taught is not None else self.frozen

    def by_file(self) -> dict[str, ParameterAverage]:
        """What a checkpoint has to hold, by the name of the file."""
        found = {"average": self.drawn, "teacher": None if self.taught is self.drawn else self.taught}
        return {name: average for name, average in found.items() if average is not None}

    def copies(self) -> list[nn.Module]:
        """The networks that are not the trained one; those that share its modules have none of their own."""
        found = [None if own is None else own.network for own in (self.drawn, self.taught)]
        return list({id(one): one for one in (*found, self.frozen) if one is not None}.values())

    def update(self) -> None:
        """After an optimiser step."""
        for average in self.by_file().values():
            average.update()


def _frozen_twin(network: nn.Module) -> nn.Module:
    """``network`` as it is now, for good; one that trains an adapter on a frozen base offers that base."""
    if sharded(network) and not has_lora(network):
        weights = {name: local(p) for name, p in trained_parameters(network).items()}
        return Replaced(network, weights, {name: weight.clone() for name, weight in weights.items()})
    twin = getattr(network, "frozen_twin", None)
    return copy.deepcopy(network).requires_grad_(False) if twin is None else twin()
