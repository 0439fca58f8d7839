"""A plan: the memory of a run by component, the time of its steps, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from twinflow.objectives import STUDENT, FlowMatching
from twinflow.pipelines.time_path import linears
from twinflow.planner.adapters import Adapter
from twinflow.planner.hardware import GiB, Gpu
from twinflow.planner.inputs import Call, name_pattern
from twinflow.planner.network import FakeNetwork
from twinflow.planner.setup import DTYPES, Setup
from twinflow.planner.sources import Backbone
from twinflow.planner.step import StepProfile, profile_step
from twinflow.recipes.sections import Lora
from twinflow.training.optim import state_bytes, update_bytes

WHOLE_MATRICES = ("adafactor", "muon")  # optimisers that slices of parameters do not do for
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
    traffic: int  # bytes that an update reads and writes, on average: weights, states, averages, gradients

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
            "phases": {phase.name: phase.share for phase in self.profile.phases},
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

    def under(self, objective: Any) -> Planner:
        """A planner of the same backbone under another objective; fake networks are shared."""
        other = Planner(self.backbone, objective)
        other._networks, other._calls = self._networks, self._calls
        return other

    def network(self, setup: Setup) -> FakeNetwork:
        key = (setup.dtype, setup.freeze, setup.lora, setup.quantize, setup.target_time)
        if key not in self._networks:
            self._networks[key] = FakeNetwork.build(
                self.backbone.kind,
                self.backbone.config,
                dtype=DTYPES[setup.dtype],
                target_time=setup.target_time,
                freeze=setup.freeze,
                adapter=None if setup.lora is None else self._adapter(setup, setup.lora),
                quantize=setup.quantize,
            )
        return self._networks[key]

    def _adapter(self, setup: Setup, lora: Lora) -> Adapter:
        """On the layers of the recipe, or those that :func:`twinflow.pipelines.reach.default_targets` finds."""
        wanted = lora.targets
        plain = self.call(replace(setup, lora=None, quantize=None, freeze=(), target_time=True))
        mlp_path = plain.network.module._time_mlp_path
        if wanted is not None:

            def chosen(name: str) -> bool:
                ends = any(name == end or name.endswith(f".{end}") for end in wanted)
                return ends and not name.startswith(f"{mlp_path}.target_embedder.")

            return Adapter(rank=lora.rank, dropout=lora.dropout, on=chosen)
        mlp = plain.network.module.get_submodule(mlp_path)
        layers = {id(layer) for layer in linears(mlp)}
        time = {f"{mlp_path}.{name}" for name, module in mlp.named_modules() if id(module) in layers}
        patterns, vain = set(plain.layers()[True]), plain.in_vain()
        return Adapter(
            rank=lora.rank,
            dropout=lora.dropout,
            on=lambda name: name in time or (name_pattern(name) in patterns and name not in vain),
        )

    def layers(self, setup: Setup) -> dict[bool, tuple[str, ...]]:
        """See :meth:`Call.layers`."""
        return self.call(replace(setup, lora=None, quantize=None, freeze=())).layers()

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

    def shards(self, setup: Setup) -> bool:
        """Whether several GPUs share the weights, and do not repeat them: see ``twinflow.training``."""
        return (
            setup.lora is None
            and not setup.optimizer.in_backward
            and setup.optimizer.name not in WHOLE_MATRICES
            and not self.objective.networks()
            and (hasattr(self.objective, "lockstep") or isinstance(self.objective, FlowMatching))
        )

    def plan(self, setup: Setup, gpu: Gpu, gpus: int = 1, *, sharded: bool | None = None) -> Plan:
        """The plan of ``setup`` on ``gpus`` GPUs; ``sharded``: by default wherever that can be."""
        if sharded is None:
            sharded = gpus > 1 and self.shards(setup)
        network, step = self.network(setup), setup
        if (
            sharded and setup.autocast
        ):  # sharding casts weights as they travel, and adds gradients up in their dtype
            step = replace(setup, dtype="bf16", autocast=False)
        profile = self.profile(step)
        share = 1 / gpus if sharded else 1.0
        wider = DTYPES[setup.dtype].itemsize / DTYPES[step.dtype].itemsize
        timeline = profile.timeline(gradient_share=share * wider)
        sizes = self._sizes(setup, network, profile)
        staying = {
            name: count
            for name, count in self.backbone.encoders.items()
            if not setup.cached or (setup.previews and name == "vae")
        }
        parts = {name: int(count * share) for name, count in sizes.parts.items()} | {
            "gradients": timeline.gradients_at_peak,
            "activations": timeline.peak - timeline.gradients_at_peak,
            "unsharded blocks": _UNSHARDED * self.network(step).largest_block() if sharded else 0,
            "text encoder and autoencoder": sum(staying.values()) * DTYPES[setup.dtype].itemsize,
            "context and allocator": gpu.margin,
        }
        parts["weights"] += network.buffers
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
            traffic=int(sizes.traffic * share),
        )

    def _sizes(self, setup: Setup, network: FakeNetwork, profile: StepProfile) -> _Sizes:
        """What the networks of the objective keep from step to step."""
        weights = sum(w.nbytes for w in network.weights)
        live = [w for w in network.weights if w.trained and w.name not in profile.dead]
        trained = sum(w.nbytes for w in network.weights if w.trained)
        states = sum(
            state_bytes(setup.optimizer, w.shape, w.dtype, in_block=w.block is not None) for w in live
        )
        averages = trained * _averages(setup)
        moved = profile.share_of(STUDENT)
        others = other_states = 0
        traffic = moved * (
            3 * trained + 2 * (states + averages)
        )  # gradients are read, the rest is written too
        for name, spec in self.objective.networks().items():
            size, kept = trained, states if spec.trained else 0
            if spec.kind == "new":  # in fp32
                shapes = profile.modules[name]
                size = sum(torch.Size(shape).numel() for shape in shapes) * torch.float32.itemsize
                kept = sum(
                    state_bytes(setup.optimizer, shape, torch.float32, in_block=False) for shape in shapes
                )
            others, other_states = others + size, other_states + kept
            traffic += profile.share_of(name) * (3 * size + 2 * kept)
            traffic += moved * 2 * size if spec.kind == "average" else 0
        return _Sizes(
            parts={
                "weights": weights,
                "optimiser states": states,
                "averages": averages,
                # What is trained on a frozen base has that base as its teacher.
                "frozen teacher": weights if setup.teacher == "frozen" and setup.lora is None else 0,
                "other networks": others,
                "optimiser states of other networks": other_states,
            },
            traffic=traffic,
        )


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Bytes of all processes together."""

    parts: dict[str, int]
    traffic: float  # of an update, on average


def size(count: float) -> str:
    """``"61.2 GiB"``."""
    return f"{count / GiB:.1f} GiB" if count >= GiB / 10 else f"{count / 2**20:.1f} MiB"


def _averages(setup: Setup) -> int:
    """Copies of the trained weights that training.averages keeps."""
    drawn = setup.ema.decay > 0
    taught = setup.teacher == "ema" and not (drawn and setup.ema.decay == setup.ema.teacher_decay)
    return int(drawn) + int(taught)
