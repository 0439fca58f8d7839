"""The trained module, and the network that a LoRA is trained on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from twinflow.pipelines import lora
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.features import tapped


class AnyStepNetwork(nn.Module):
    """The trained module ``F(x_t, t, r, cond)``: a stock transformer, its adapter and its target-time branch."""

    def __init__(self, transformer: nn.Module, adapter: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self._adapter = (adapter,)  # in a tuple: shared by copies of the network, not copied with them

    def __deepcopy__(self, memo: dict) -> AnyStepNetwork:
        return AnyStepNetwork(copy.deepcopy(self.transformer, memo), self._adapter[0])

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        (adapter,) = self._adapter
        if not tt.has_target_time(self.transformer):
            return adapter.predict(self.transformer, x_t, t, cond)
        marked_by_sign = tt.marks_fake_by_sign(self.transformer)
        with tt.times(self.transformer, t=t, r=r):
            return adapter.predict(self.transformer, x_t, t.abs() if marked_by_sign else t, cond)

    def features(self, x_t: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        """Features (B, N, D) of some blocks at r = t, see :class:`twinflow.field.FeatureField`."""
        with tapped(self.transformer) as features:
            self(x_t, t, t, cond)
        return features

    def frozen_twin(self) -> nn.Module:
        """The network as it is now, to learn from: a copy, or where a LoRA is trained the base under it."""
        if lora.has_lora(self.transformer):
            return BaseNetwork(self)
        return copy.deepcopy(self).requires_grad_(False)

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """One set of dropout masks for all calls in a block, those of copies of this network included."""
        masks = lora.dropouts(self.transformer)
        for mask in masks:
            mask.draw()
        try:
            yield
        finally:
            for mask in masks:
                mask.clear()


class BaseNetwork(nn.Module):
    """The velocity field under a LoRA: its adapters are off and ``r`` is ignored. It holds no weights.

    At r = t the gate of the target-time branch is 0, so this is the base bit for bit.
    """

    def __init__(self, network: AnyStepNetwork) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple: no submodule, so that its parameters are listed once

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        (network,) = self._network
        with lora.switched_off(network.transformer):
            return network(x_t, t, t, cond)

    def features(self, x_t: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        """As :meth:`AnyStepNetwork.features`, of the base."""
        (network,) = self._network
        with lora.switched_off(network.transformer):
            return network.features(x_t, t, cond)
