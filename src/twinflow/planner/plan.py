"""A plan: the memory of a run by component, the time of its steps, and whether it fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from twinflow.planner.hardware import GiB, Gpu
from twinflow.planner.setup import Setup
from twinflow.planner.step import StepProfile
from twinflow.quantities import parameters, seconds


@dataclass(frozen=True, kw_only=True)
class Component:
    """Something that takes memory, of one GPU."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes, on each of ``gpus`` GPUs."""

    model: str
    gpu: Gpu
    gpus: int
    machine: int | None = None  # of them in each machine; None: up to 8
    setup: Setup
    shards: int  # among how many GPUs the weights are divided; 1: each holds all
    context: int = 1  # GPUs that share the tokens of a row
    parameters: int
    trained: int
    groups: dict[str, int]
    components: tuple[Component, ...]
    host: int  # bytes on the host: offloaded activations, and shards that are kept there
    opening: int = (
        0  # bytes of the first GPU, with the margin, while a sharded run opens its model; 0: not more
    )
    profile: StepProfile = field(repr=False)
    traffic: int  # bytes that an update reads and writes, on average: weights, states, averages, gradients

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a step, with the margin."""
        return sum(component.bytes for component in self.components)

    @property
    def needed(self) -> int:
        """Bytes at the worst moment of all: of a step, or while the model is opened."""
        return max(self.peak, self.opening)

    @property
    def allocated(self) -> int:
        """What torch's own count (``max_memory_allocated``) should say: without the margin."""
        return self.peak - self.gpu.margin

    @property
    def sharded(self) -> bool:
        return self.shards > 1

    @property
    def fits(self) -> bool:
        return self.needed <= self.gpu.memory

    @property
    def step_seconds(self) -> float:
        """The floor: the best matrix products, and the optimiser's traffic, with nothing in between."""
        work = self.profile.step_flops * self.setup.accumulate / self.context
        compute = self.gpu.seconds(work, half=self.setup.half)
        return compute + self.traffic / (self.gpu.bandwidth * 1e12)

    @property
    def run_seconds(self) -> float:
        return self.step_seconds * self.setup.steps

    @property
    def rows(self) -> int:
        """Of a step, of all GPUs together."""
        return self.setup.batch * self.setup.accumulate * self.gpus // self.context

    @property
    def images_per_second(self) -> float:
        return self.rows / self.step_seconds

    def summary(self) -> str:
        """One line."""
        fits = "fits" if self.fits else "does not fit"
        known = not math.isnan(self.step_seconds)  # of a GPU whose speed is not known there is no floor
        return (
            f"{self.model}: {parameters(self.parameters, digits=3)} parameters, "
            f"{parameters(self.trained, digits=3)} trained; "
            f"peak {size(self.peak)} of {size(self.gpu.memory)} on {self.gpus} x {self.gpu.name}, which {fits}"
            + (f"; at least {seconds(self.step_seconds)} a step" if known else "")
            + (f"; {size(self.opening)} on the first GPU while the model is opened" if self.opening else "")
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, in bytes, operations and seconds."""
        schedule = self.profile.schedule
        return {
            "model": self.model,
            "gpu": self.gpu.name,
            "gpus": self.gpus,
            "sharded": self.sharded,
            "shards": self.shards,
            "context": self.context,
            "parameters": self.parameters,
            "trained": self.trained,
            "groups": self.groups,
            "batch": self.setup.batch,
            "accumulate": self.setup.accumulate,
            "height": self.setup.height,
            "width": self.setup.width,
            "frames": self.setup.frames,
            "text_tokens": self.setup.text_tokens,
            "memory": {component.name: component.bytes for component in self.components},
            "peak": self.peak,
            "peak_at": self.profile.timeline().peak_at,
            "available": self.gpu.memory,
            "fits": self.fits,
            "host": self.host,
            "opening": self.opening,
            "forward_flops": self.profile.forward_flops,
            "step_flops": self.profile.step_flops * self.setup.accumulate,
            "calls": schedule.calls,
            "rows_without_gradient": schedule.rows,
            "phases": {phase.name: phase.share for phase in self.profile.phases},
            "step_seconds": self.step_seconds,
            "run_seconds": self.run_seconds,
            "dead_parameters": list(self.profile.dead),
        }


def size(count: float) -> str:
    """``"61.2 GiB"``."""
    unit, name = next((u for u in ((GiB, "GiB"), (2**20, "MiB")) if count >= u[0] / 10), (2**10, "KiB"))
    return f"{count / unit:.1f} {name}"
