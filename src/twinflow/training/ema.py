"""Moving averages of the trained weights: to draw with and save, and as a teacher."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.training.optim_rounding import lerp_
from twinflow.training.shards import Replaced, exchange, local, sharded


class ParameterAverage:
    """A copy of ``network`` whose trained weights follow ``avg <- d avg + (1 - d) weights``.

    The decay warms up from 0: after each update ``d <- d + (1 - d)(decay - d) / 2``, so the first update copies
    the weights and early ones are soon forgotten (for 0.99: 0.495, 0.620, 0.690, …). :meth:`update` belongs
    after each optimiser step, however many micro-batches it had. Buffers are not averaged; parameters that
    are not trained are shared with ``network``. Of a sharded network the average is of this process's slices. bf16
    averages are rounded by chance: most of their steps are smaller than the distance of two bf16 numbers.

    ``on_host``: keep it in (pinned) memory of the host; a call of :attr:`network` then exchanges all weights before and
    after, and has no gradient. ``every``: :meth:`update` counts so many calls for one, of ``decay`` to that power: the
    average forgets in the same time, and moves less data.
    """

    def __init__(self, network: nn.Module, *, decay: float, on_host: bool = False, every: int = 1) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.every = decay**every, every
        self.calls = 0  # of update
        self.current_decay = 0.0  # of the next update
        self.updates = 0
        self._weights: dict[str, Tensor] = {n: local(p) for n, p in trained_parameters(network).items()}
        self._average: dict[str, Tensor]
        self.network: nn.Module
        if on_host or sharded(network):
            copied = _to_host if on_host else torch.clone
            self._average = {name: copied(weight.detach()) for name, weight in self._weights.items()}
            self.network = Replaced(network, self._weights, self._average)
            return
        frozen = {id(p): p for p in network.parameters() if not p.requires_grad}
        self.network = copy.deepcopy(network, frozen)  # type: ignore[arg-type]
        copies = dict(self.network.named_parameters())
        self._average = {name: copies[name].requires_grad_(False) for name in self._weights}

    @torch.no_grad()
    def update(self) -> None:
        self.calls += 1
        if self.calls % self.every:
            return
        lerp_(self._average, self._weights, 1 - self.current_decay, step=self.updates)
        self.current_decay += (1 - self.current_decay) * (self.decay - self.current_decay) / 2
        self.updates += 1

    def swap(self) -> None:
        """Exchange the averaged and the trained weights; twice is nothing."""
        exchange(self._weights, self._average)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Averaged weights, and the state of the warm-up."""
        state = {"current_decay": self.current_decay, "updates": self.updates, "calls": self.calls}
        return dict(self._average), state

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        for name, average in self._average.items():
            average.copy_(tensors[name])
        self.current_decay, self.updates = float(state["current_decay"]), int(state["updates"])
        self.calls = int(state.get("calls", self.updates))


def _to_host(weight: Tensor) -> Tensor:
    """A copy of ``weight``; pinned, if it comes from a GPU."""
    kept = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda)
    return kept.copy_(weight)


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimiser may change, by name; a tied one once."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
