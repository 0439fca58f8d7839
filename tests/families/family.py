"""What a test needs to know of a family of pipelines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch


@dataclass
class Family:
    name: str
    build: Callable[[], Any]  # a stock pipeline, random weights, on the CPU
    call: dict[str, Any] = field(default_factory=dict)  # arguments of the stock call that make it small
    video: bool = False
    edits: bool = False

    @cached_property
    def original(self) -> Any:
        torch.manual_seed(0)
        pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval()
        enliven(pipe.transformer)
        return pipe

    def stock(self) -> Any:
        """A fresh copy of the pipeline: the transformer is its own, everything else is shared."""
        pipe = copy.copy(self.original)
        pipe.transformer = copy.deepcopy(self.original.transformer)
        return pipe


def enliven(network: torch.nn.Module) -> None:
    """Random numbers where a new network has zeros, so that every parameter has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not torch.isfinite(parameter).all() or not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
