"""What a training costs, counted while it runs: calls, rows, FLOPs, seconds, memory; and budgets in these units."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from twinflow.errors import TwinflowError
from twinflow.objectives import Field

Unit = Literal["steps", "images", "rows", "flops", "seconds"]
UNITS: dict[str, str] = {
    "steps": "optimiser steps, of whatever network",
    "images": "rows of data",
    "rows": "rows that any network was evaluated on, with or without gradient",
    "flops": "floating-point operations of the steps, forward and backward",
    "seconds": "seconds of the steps",
}
# The kernels of attention on a CPU, which torch's counter doesn't know: there it would cost nothing.
_aten = torch.ops.aten
_CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}


@dataclass(kw_only=True)
class Tally:
    """Evaluations of one network. A forward with gradient has a backward too."""

    calls: int = 0
    rows: int = 0
    grad_calls: int = 0  # of calls
    grad_rows: int = 0  # of rows


class CountedField:
    """A field whose evaluations are counted; otherwise it is the field."""

    def __init__(self, inner: Field, tally: Tally) -> None:
        self._inner, self._tally = inner, tally

    def __call__(self, x_t: Tensor, *rest: Any) -> Tensor:
        self._count(x_t)
        return self._inner(x_t, *rest)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != "features":
            return found

        def features(x_t: Tensor, *rest: Any) -> list[Tensor]:
            self._count(x_t)
            return found(x_t, *rest)

        return features

    def _count(self, x_t: Tensor) -> None:
        grad = torch.is_grad_enabled()
        self._tally.calls += 1
        self._tally.rows += x_t.shape[0]
        self._tally.grad_calls += grad
        self._tally.grad_rows += x_t.shape[0] if grad else 0


@dataclass(kw_only=True)
class PhaseCost:
    """What the steps of one phase of an objective have cost."""

    steps: int = 0
    images: int = 0  # rows of data
    seconds: float = 0.0
    flops_per_step: int = 0  # of the first step, measured; the others are taken for the same
    networks: dict[str, Tally] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(tally.rows for tally in self.networks.values())

    @property
    def flops(self) -> int:
        return self.steps * self.flops_per_step


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A bound on what a run may cost.

    Of what adds up from step to step. Memory does not, and is no unit: its peak is reached in the first steps of each
    phase, so that a bound on it would not end a run but forbid it. It is measured (:meth:`Accountant.peak_memory`,
    :class:`Holdings`), and foretold by ``twinflow plan``.
    """

    unit: Unit
    amount: float

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise TwinflowError(f"budget.unit = {self.unit!r} is not known: use one of {', '.join(UNITS)}")
        if not self.amount > 0:
            raise TwinflowError(f"budget.amount must be positive, got {self.amount!r}")


class Accountant:
    """Counts a run's costs by phase. Wrap every field by :meth:`field`, and every optimiser step by :meth:`step`.

    Seconds are those of the host; on a GPU it runs ahead of the device, which the sum makes up for.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.phases: dict[str, PhaseCost] = {}
        self._tallies: dict[str, Tally] = {}
        self._peak = 0
        reset_peak_memory(self.device)

    def field(self, name: str, inner: Field) -> CountedField:
        """``inner``, whose evaluations count for the network ``name``."""
        return CountedField(inner, self._tallies.setdefault(name, Tally()))

    @contextmanager
    def step(self, phase: str, *, images: int) -> Iterator[None]:
        """One optimiser step of ``phase`` on ``images`` rows of data, all its micro-batches together.

        Operations are counted in the first step of each phase, which is not compiled for that.
        """
        cost = self.phases.setdefault(phase, PhaseCost())
        for name in self._tallies:
            self._tallies[name].__init__()  # type: ignore[misc]  # the fields keep it
        started = time.monotonic()
        if cost.steps == 0:
            with _eager(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
                yield
            cost.flops_per_step = counter.get_total_flops()
        else:
            yield
        cost.seconds += time.monotonic() - started
        cost.steps += 1
        cost.images += images
        for name, tally in self._tallies.items():
            whole = cost.networks.setdefault(name, Tally())
            for key, value in asdict(tally).items():
                setattr(whole, key, getattr(whole, key) + value)

    # Sums

    def total(self, unit: Unit) -> float:
        """What has been spent so far."""
        return sum(getattr(cost, unit) for cost in self.phases.values())

    def exhausted(self, budget: Budget) -> bool:
        return self.total(budget.unit) >= budget.amount

    def per_image(self) -> dict[str, float]:
        """Evaluations of all networks for each row of data: forwards, backwards, and calls for each step."""
        images, steps = max(self.total("images"), 1), max(self.total("steps"), 1)
        tallies = [tally for cost in self.phases.values() for tally in cost.networks.values()]
        return {
            "forwards": sum(t.rows for t in tallies) / images,
            "backwards": sum(t.grad_rows for t in tallies) / images,
            "calls_per_step": sum(t.calls for t in tallies) / steps,
            "flops": self.total("flops") / images,
            "seconds": self.total("seconds") / images,
        }

    def peak_memory(self) -> int:
        """Most bytes held at once since the accountant was made: of the device, or of the process on the CPU."""
        self._peak = max(self._peak, peak_memory(self.device))
        return self._peak

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        return {
            "phases": {name: asdict(cost) for name, cost in self.phases.items()},
            "peak_memory": self.peak_memory(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.phases = {}
        for name, saved in state["phases"].items():
            networks = {key: Tally(**tally) for key, tally in saved["networks"].items()}
            self.phases[name] = PhaseCost(**{**saved, "networks": networks})
        self._peak = int(state["peak_memory"])


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What has to be held in memory to train."""

    trained: int  # parameters with an optimiser
    frozen: int  # others: teachers, averages, what an adapter leaves alone
    parameter_bytes: int
    optimizer_bytes: int

    @classmethod
    def of(
        cls, networks: Iterable[nn.Module], trained: Iterable[Tensor], states: Iterable[Tensor]
    ) -> Holdings:
        """Of ``networks``, of which ``trained`` are the parameters that optimisers change by their ``states``.

        What several networks share is counted once.
        """
        unique = {id(p): p for network in networks for p in network.parameters()}
        changed = {id(p) for p in trained}
        sizes = {key: p.numel() for key, p in unique.items()}
        return cls(
            trained=sum(size for key, size in sizes.items() if key in changed),
            frozen=sum(size for key, size in sizes.items() if key not in changed),
            parameter_bytes=sum(p.numel() * p.element_size() for p in unique.values()),
            optimizer_bytes=sum(s.numel() * s.element_size() for s in states),
        )


def _eager() -> AbstractContextManager[Any]:
    """Run compiled networks as they are written. Nothing is compiled where the compiler was never imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def reset_peak_memory(device: torch.device) -> None:
    """Begin :func:`peak_memory` anew where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes that were allocated on ``device`` at once; on the CPU, that the process was resident in."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
