"""Modules that have a configuration and shapes, but no weights: what they are asked is answered elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Weightless:
    """Comes before the class of a module without weights."""

    @property
    def device(self) -> torch.device:
        """Where its answers are."""
        found: torch.device = self.__dict__.get("_device", torch.device("cpu"))
        return found

    def to(self, *args: Any, **kwargs: Any) -> Weightless:
        """No weights are moved: tables that were calculated here are, and answers come on the device asked for."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None:
            self.__dict__["_device"] = device
            modules: Any = self.modules()  # type: ignore[attr-defined]
            for module in modules:
                for key, value in module._buffers.items():
                    if value is not None and not value.is_meta:
                        module._buffers[key] = value.to(device)
        return self


def put_before(module: nn.Module, front: type[Weightless]) -> None:
    """Let ``module`` be of the class ``front`` first, and of its own, under whose name it is known, after it."""
    kind = type(module)
    attributes = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (front, kind), attributes)


def stock_class(module: nn.Module) -> type:
    """The class of ``module``, without what :func:`put_before` put there."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, Weightless))


def take_back(module: nn.Module) -> None:
    """Undo :func:`put_before`; a module that has its weights is left as it is."""
    if isinstance(module, Weightless):
        module.__class__ = type(module).__bases__[1]
        module.__dict__.pop("_device", None)
