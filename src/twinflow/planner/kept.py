"""What a run keeps from step to step: weights, states of the optimiser, averages, other networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from twinflow.objectives import STUDENT
from twinflow.planner.network import FakeNetwork
from twinflow.planner.setup import Setup
from twinflow.planner.step import StepProfile
from twinflow.training.optim import state_bytes


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes of one process."""

    parts: dict[str, int]
    host: int  # besides, on the host: an average that is kept there
    gradients: int  # of what is trained, once it is complete
    traffic: float  # of an update, on average: what it reads and writes

    @classmethod
    def of(
        cls, setup: Setup, network: FakeNetwork, profile: StepProfile, objective: Any, *, shards: int
    ) -> Kept:
        """``shards``: among how many processes all of it is divided; of each weight the first has most."""

        def share(size: float) -> int:
            return int(size / shards)

        def states_of(shape: Sequence[int], dtype: torch.dtype, *, in_block: bool) -> int:
            return state_bytes(setup.optimizer, sliced(shape, shards), dtype, in_block=in_block)

        weights = share(sum(w.nbytes for w in network.weights))
        live = [w for w in network.weights if w.trained and w.name not in profile.dead]
        trained = share(sum(w.nbytes for w in network.weights if w.trained))
        states = sum(states_of(w.shape, w.dtype, in_block=w.block is not None) for w in live)
        drawn, taught = _averages(setup)
        away = trained if drawn and setup.ema.on_host else 0
        averages = trained * (drawn + taught) - away
        moved = profile.share_of(STUDENT)
        others = other_states = 0
        # Gradients are read, the rest is written too.
        traffic = moved * (3 * trained + 2 * (states + trained * (drawn / setup.ema.every + taught)))
        for name, spec in objective.networks().items():
            size, kept = trained, states if spec.trained else 0
            if spec.kind == "new":  # in fp32
                shapes = profile.modules[name]
                size = share(sum(torch.Size(shape).numel() for shape in shapes) * torch.float32.itemsize)
                kept = sum(states_of(shape, torch.float32, in_block=False) for shape in shapes)
            others, other_states = others + size, other_states + kept
            traffic += profile.share_of(name) * (3 * size + 2 * kept)
            traffic += moved * 2 * size if spec.kind == "average" else 0
        return cls(
            parts={
                "weights": weights,
                "optimiser states": states,
                "averages": averages,
                # What is trained on a frozen base has that base as its teacher.
                "frozen teacher": weights if setup.teacher == "frozen" and setup.lora is None else 0,
                "other networks": others,
                "optimiser states of other networks": other_states,
            },
            host=away,
            gradients=share(sum(w.nbytes for w in live)),
            traffic=traffic,
        )


def sliced(shape: Sequence[int], shards: int) -> tuple[int, ...]:
    """The largest slice of a parameter: shards are cut along the first dimension."""
    if shards == 1 or len(shape) == 0:
        return tuple(shape)
    return (-(-shape[0] // shards), *shape[1:])


def _averages(setup: Setup) -> tuple[int, int]:
    """Copies of the trained weights that training.averages keeps: to draw with, and another as a teacher."""
    drawn = setup.ema.decay > 0
    taught = setup.teacher == "ema" and not (drawn and setup.ema.decay == setup.ema.teacher_decay)
    return int(drawn), int(taught)
