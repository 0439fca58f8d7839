"""Updates during the backward pass: a block's gradients live only until its weights are updated.

Each parameter gets one update a backward pass, from the same gradient and by the same arithmetic as after it, so
the result is that of the ordinary optimiser, bit for bit. What needs all gradients together (the clip by their
norm) or adds up those of several passes (accumulation) can't be done; recipes refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from twinflow.training.shards import local


def blockwise(parameters: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
    """``parameters`` by the block (``blocks.3``) that they lie in, the others each on their own."""
    units: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = name if number is None else ".".join(parts[: number + 1])
        units.setdefault(key, {})[name] = parameter
    return list(units.values())


class InBackward:
    """Steps the optimisers of a unit, a block's, when the last of its gradients is there.

    A parameter that got no gradient in a pass (it has no effect on the loss) is not waited for in the next; what
    is left at the end of a pass is updated by :meth:`finish`, so that none is updated twice or forgotten.
    ``average``: called with each unit's gradients first; replaces them by their mean over all processes. ``total``:
    makes a sum over the elements that are here one over those of all processes. ``sources``: where a parameter is the
    slice of a sharded one, that one: its gradient is that of the slice, and comes when those of all processes have been
    added up.
    """

    def __init__(
        self,
        units: Sequence[Sequence[torch.optim.Optimizer]],
        *,
        sources: Mapping[nn.Parameter, DTensor] | None = None,
    ) -> None:
        self.units = [_Unit(list(optimizers)) for optimizers in units]
        self.average: Callable[[list[Tensor]], None] = lambda gradients: None
        self.total: Callable[[Tensor], Tensor] = lambda square: square
        self._squares: list[Tensor] = []
        self._handles: list[Any] = []
        for unit in self.units:
            for parameter in unit.parameters:
                source = (sources or {}).get(parameter, parameter)
                hook = self._hook_of(unit, parameter)
                self._handles.append(source.register_post_accumulate_grad_hook(hook))

    def finish(self) -> Tensor:
        """Update what is left after a backward pass. The norm of all its gradients is returned."""
        for unit in self.units:
            unit.silent = {p for p in unit.parameters if p not in unit.arrived}
            if unit.waiting:
                self._update(unit)
            unit.arrived.clear()
        squares, self._squares = self._squares, []
        if not squares:
            return torch.zeros(())
        here = torch.stack([square.to(squares[0].device) for square in squares]).sum()
        return self.total(here).sqrt()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook_of(self, unit: _Unit, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        def hook(source: Any) -> None:  # torch refuses hooks that return anything
            if source is not parameter:
                if parameter in unit.arrived:
                    raise RuntimeError(
                        "a sharded network was called twice with gradient in one step: optimizer.in_backward would "
                        "update it twice. Set it to false"
                    )
                assert source.grad is not None
                parameter.grad, source.grad = local(source.grad), None
                wait_for_host(parameter.grad, where=source.device_mesh.device_type)
            unit.waiting.append(parameter)
            unit.arrived.add(parameter)
            if all(p in unit.arrived or p in unit.silent for p in unit.parameters):
                self._update(unit)

        return hook

    @torch.no_grad()
    def _update(self, unit: _Unit) -> None:
        gradients = [p.grad for p in unit.parameters if p.grad is not None]
        self.average(gradients)
        norms = torch._foreach_norm(gradients, 2, torch.float32)
        self._squares.append(torch.stack(list(norms)).square().sum())
        for optimizer in unit.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        unit.waiting.clear()


def wait_for_host(gradient: Tensor, *, where: str) -> None:
    """Wait for the slice of a gradient that FSDP2 copies to the host (``cpu_offload``) from ``where`` it is calculated.

    It calls the hook right after it has asked for the copy, and waits for all of them after the backward pass only.
    """
    if where == "cuda" and gradient.device.type == "cpu":
        torch.cuda.current_stream().synchronize()  # in the hook that of the copy


class _Unit:
    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.parameters: list[nn.Parameter] = [
            p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
        ]
        self.waiting: list[Tensor] = []  # with a gradient that no update has used
        self.arrived: set[Tensor] = set()  # in this pass
        self.silent: set[Tensor] = set()  # without a gradient in the last pass
