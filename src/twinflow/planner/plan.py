"""A plan: the memory of a run by component, the time of its steps, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from twinflow.errors import TwinflowError
from twinflow.planner.hardware import GiB, Gpu
from twinflow.planner.inputs import Call
from twinflow.planner.network import FakeNetwork
from twinflow.planner.setup import DTYPES, Setup
from twinflow.planner.sources import Backbone
from twinflow.planner.step import StepProfile, profile_step
from twinflow.training.optim import state_bytes, update_bytes

_UNSHARDED = (
    3  # blocks that FSDP2 holds whole at once: the running one, the next, and one whose gradients go out
)


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
    setup: Setup
    sharded: bool
    parameters: int
    trained: int
    groups: dict[str, int]
    components: tuple[Component, ...]
    host: int  # bytes of offloaded activations
    profile: StepProfile = field(repr=False)

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a step, with the margin."""
        return sum(component.bytes for component in self.components)

    @property
    def allocated(self) -> int:
        """What torch's own count (``max_memory_allocated``) should say: without the margin."""
        return self.peak - self.gpu.margin

    @property
    def fits(self) -> bool:
        return self.peak <= self.gpu.memory

    @property
    def step_seconds(self) -> float:
        """The floor: the best matrix products, and the optimiser's traffic, with nothing in between."""
        compute = self.gpu.seconds(self.profile.step_flops * self.setup.accumulate, half=self.setup.half)
        return compute + self.traffic / (self.gpu.bandwidth * 1e12)

    @property
    def traffic(self) -> int:
        """Bytes that an update reads and writes: weights, states and averages twice, gradients once."""
        sizes = {component.name: component.bytes for component in self.components}
        states = sizes.get("optimiser states", 0) + sizes.get("averages", 0)
        share = self.trained / self.parameters
        return int(2 * (sizes["weights"] * share + states) + sizes["weights"] * share)

    @property
    def run_seconds(self) -> float:
        return self.step_seconds * self.setup.steps

    @property
    def images_per_second(self) -> float:
        return self.setup.batch * self.setup.accumulate * self.gpus / self.step_seconds

    def summary(self) -> str:
        """One line."""
        fits = "fits" if self.fits else "does not fit"
        return (
            f"{self.model}: {self.parameters / 1e9:.3g} B parameters, {self.trained / 1e9:.3g} B trained; "
            f"peak {size(self.peak)} of {size(self.gpu.memory)} on {self.gpus} x {self.gpu.name}, which {fits}; "
            f"at least {self.step_seconds:.3g} s a step"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, in bytes, operations and seconds."""
        schedule = self.profile.schedule
        return {
            "model": self.model,
            "gpu": self.gpu.name,
            "gpus": self.gpus,
            "sharded": self.sharded,
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
            "forward_flops": self.profile.forward_flops,
            "step_flops": self.profile.step_flops * self.setup.accumulate,
            "calls": schedule.calls,
            "rows_without_gradient": schedule.rows,
            "step_seconds": self.step_seconds,
            "run_seconds": self.run_seconds,
            "dead_parameters": list(self.profile.dead),
        }


class Planner:
    """Plans one backbone under one objective; what was measured once is not measured again."""

    def __init__(self, backbone: Backbone, objective: Any) -> None:
        self.backbone, self.objective = backbone, objective
        self._networks: dict[Any, FakeNetwork] = {}
        self._calls: dict[Any, Call] = {}
        self._profiles: dict[Any, StepProfile] = {}

    def network(self, setup: Setup) -> FakeNetwork:
        key = (setup.dtype, setup.freeze, setup.lora_rank, setup.target_time)
        if key not in self._networks:
            targets: tuple[str, ...] = ()
            if setup.lora_rank is not None:
                targets = self.layers(setup)[True]
            self._networks[key] = FakeNetwork.build(
                self.backbone.kind,
                self.backbone.config,
                dtype=DTYPES[setup.dtype],
                target_time=setup.target_time,
                freeze=setup.freeze,
                lora_rank=setup.lora_rank,
                lora_targets=targets,
            )
        return self._networks[key]

    def layers(self, setup: Setup) -> dict[bool, tuple[str, ...]]:
        """See :meth:`Call.layers`."""
        return self.call(replace(setup, lora_rank=None, freeze=())).layers()

    def call(self, setup: Setup) -> Call:
        network = self.network(setup)
        latents = self.backbone.compression.latents(
            height=setup.height, width=setup.width, frames=setup.frames
        )
        key = (id(network), latents, setup.text_tokens)
        if key not in self._calls:
            self._calls[key] = Call.find(network, latents, text_tokens=setup.text_tokens)
        return self._calls[key]

    def profile(self, setup: Setup) -> StepProfile:
        call, settings = self.call(setup), setup.optimizer
        key = (id(call), setup.batch, setup.options, update_bytes(settings, 1 << 62))

        def passing(parameters: Sequence[nn.Parameter]) -> int:
            return update_bytes(settings, max((p.numel() for p in parameters), default=0))

        if key not in self._profiles:
            self._profiles[key] = profile_step(
                self.network(setup),
                call,
                self.objective,
                batch=setup.batch,
                options=setup.options,
                update_bytes=passing,
            )
        return self._profiles[key]

    def plan(self, setup: Setup, gpu: Gpu, gpus: int = 1, *, sharded: bool | None = None) -> Plan:
        """The plan of ``setup`` on ``gpus`` GPUs; ``sharded``: by default if there are several, and no LoRA."""
        network, profile = self.network(setup), self.profile(setup)
        if sharded is None:
            sharded = gpus > 1 and setup.lora_rank is None
        share = 1 / gpus if sharded else 1.0
        timeline = profile.timeline(gradient_share=share)
        weights = sum(w.nbytes for w in network.weights)
        trained = [w for w in network.weights if w.trained]
        states = sum(
            state_bytes(setup.optimizer, w.shape, w.dtype, in_block=w.block is not None)
            for w in trained
            if w.name not in profile.dead
        )
        copies = sum(w.nbytes for w in trained)
        averages = copies * _averages(setup)
        frozen = weights if setup.teacher == "frozen" else 0
        staying = {
            name: count
            for name, count in self.backbone.encoders.items()
            if not setup.cached or (setup.previews and name == "vae")
        }
        encoders = sum(staying.values()) * DTYPES[setup.dtype].itemsize
        parts = {
            "weights": int(weights * share) + network.buffers,
            "optimiser states": int(states * share),
            "averages": int(averages * share),
            "frozen teacher": int(frozen * share),
            "gradients": timeline.gradients_at_peak,
            "activations": timeline.peak - timeline.gradients_at_peak,
            "unsharded blocks": _UNSHARDED * network.largest_block() if sharded else 0,
            "text encoder and autoencoder": encoders,
            "context and allocator": gpu.margin,
        }
        return Plan(
            model=self.backbone.name,
            gpu=gpu,
            gpus=gpus,
            setup=setup,
            sharded=sharded,
            parameters=network.parameters(),
            trained=network.parameters(trained=True),
            groups=network.groups(),
            components=tuple(Component(name=n, bytes=b) for n, b in parts.items() if b),
            host=timeline.host_peak,
            profile=profile,
        )


def size(count: float) -> str:
    """``"61.2 GiB"``."""
    return f"{count / GiB:.1f} GiB" if count >= GiB / 10 else f"{count / 2**20:.1f} MiB"


def _averages(setup: Setup) -> int:
    """Copies of the trained weights that training.averages keeps."""
    drawn = setup.ema.decay > 0
    taught = setup.teacher == "ema" and not (drawn and setup.ema.decay == setup.ema.teacher_decay)
    return int(drawn) + int(taught)
