"""Everything that changes in the course of a run, as one thing that can be saved and restored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from twinflow.data.loader import Order, StreamOrder
from twinflow.errors import TwinflowError
from twinflow.objectives import Objective
from twinflow.training.accountant import Accountant
from twinflow.training.averages import Averages
from twinflow.training.checkpoint import Snapshot, read_checkpoint
from twinflow.training.networks import Companions
from twinflow.training.optim import Optimizers
from twinflow.training.processes import Processes
from twinflow.training.randomness import random_state, restore_random_state
from twinflow.training.sharded_checkpoint import SLICES, cut, read_slices
from twinflow.training.shards import sharded_parameters
from twinflow.training.weights import load_weights, trained_weights


@dataclass(kw_only=True)
class RunState:
    """With the recipe and the initial model, this determines the rest of the run."""

    network: nn.Module
    averages: Averages
    optimizers: Optimizers
    objective: Objective
    order: Order
    generator: Generator
    processes: Processes
    device: torch.device
    companions: Companions | None = None
    accountant: Accountant | None = None
    step: int = 0  # optimiser steps made
    seconds: float = 0.0  # of training, for the reader of the logs

    def snapshot(self) -> Snapshot:
        """All of it, of a sharded run the slices; every process has to take part."""
        optimizer, scalars = self.optimizers.state_dict()
        tensors = {"weights": trained_weights(self.network), "optimizer": optimizer}
        own = random_state(self.generator)
        if isinstance(self.order, StreamOrder):
            own["order"] = self.order.own_state()
        of_all = self.processes.gather(own, self.device)
        for rank, random in enumerate(of_all[:: self.processes.context]):  # the same in all that share rows
            tensors[f"random_{rank}"] = random
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "order": self.order.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": scalars,
        }
        for name, average in self.averages.by_file().items():
            tensors[name], state[name] = average.state_dict()
        if self.companions is not None and self.companions.networks:
            others, state["networks"] = self.companions.state()
            tensors |= others
        if self.accountant is not None:
            state["accountant"] = self.accountant.state_dict()
        return Snapshot(tensors=tensors, state=state)

    def restore(self, path: Path) -> None:
        """Fill everything in place from the checkpoint ``path``; ``TwinflowError`` if it does not fit."""
        snapshot, parameters = read_checkpoint(path), sharded_parameters(self.network)
        if (path / SLICES).is_dir():
            read_slices(path, snapshot, parameters, self.processes)
        else:
            cut(snapshot, parameters)
        tensors, state = snapshot.tensors, snapshot.state
        try:
            load_weights(self.network, tensors["weights"])
            for name, average in self.averages.by_file().items():
                average.load_state_dict(tensors[name], state[name])
            if self.companions is not None and self.companions.networks:
                self.companions.load_state(tensors, state["networks"])
            if self.accountant is not None and "accountant" in state:
                self.accountant.load_state_dict(state["accountant"])
            self.optimizers.load_state_dict(tensors["optimizer"], state["optimizer"])
            self.objective.load_state_dict(state["objective"])
            self.order.load_state_dict(state["order"])
            random = tensors.get(f"random_{self.processes.data_rank}")
            if random is not None:  # else this run has more processes than that which was saved
                restore_random_state(self.generator, random)
                if isinstance(self.order, StreamOrder):
                    self.order.load_own_state(random["order"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise TwinflowError(f"{path} is a checkpoint of another model or run: {error}") from error
