"""From a setup to its plan: what was measured once on fake tensors, put together with what is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from twinflow.pipelines.context import check_divisible
from twinflow.pipelines.time_path import linears
from twinflow.planner.adapters import Adapter
from twinflow.planner.hardware import Gpu
from twinflow.planner.inputs import Call, name_pattern
from twinflow.planner.kept import Kept
from twinflow.planner.network import FakeNetwork
from twinflow.planner.plan import Component, Plan
from twinflow.planner.setup import DTYPES, Setup
from twinflow.planner.sharding import Passing, Undivided, opening_bytes
from twinflow.planner.sources import Backbone
from twinflow.planner.step import StepProfile, profile_step
from twinflow.recipes.sections import Lora
from twinflow.training.optim import update_bytes
from twinflow.training.parallel import check_context, not_divided, not_sharded, shard_count

MACHINE = 8  # GPUs, where nothing is said
_MULTIPLE = 64  # pixels that every autoencoder and patch divides


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
        plain = self._call(setup, height=setup.height)
        if not setup.edits or plain.beside:  # channels of a source bring no tokens
            return plain
        # A source picture brings tokens of its own: to the transformer it is as if the picture were so much higher.
        area = self.backbone.source_area
        source = setup.height if area is None else math.ceil(area / setup.width / _MULTIPLE) * _MULTIPLE
        return self._call(setup, height=setup.height + source)

    def _call(self, setup: Setup, *, height: int) -> Call:
        network = self.network(setup)
        latents = self.backbone.compression.latents(height=height, width=setup.width, frames=setup.frames)
        key = (id(network), latents, setup.text_tokens)
        if key not in self._calls:
            self._calls[key] = Call.find(
                network,
                latents,
                text_tokens=setup.text_tokens,
                image_tokens=self.backbone.image_tokens,
            )
        return self._calls[key]

    def profile(self, setup: Setup, *, shards: int = 1) -> StepProfile:
        call, settings = self.call(setup), setup.optimizer
        key = (id(call), setup.batch, setup.options, update_bytes(settings, 1 << 62), shards)

        def passing(parameters: Sequence[nn.Parameter]) -> int:
            largest = max((p.numel() for p in parameters), default=0)
            return update_bytes(settings, -(-largest // shards))

        if key not in self._profiles:
            objective = self.objective
            if shards > 1 and hasattr(objective, "lockstep"):  # as the trainer sets it
                objective = copy.copy(objective)
                objective.lockstep = True
            self._profiles[key] = profile_step(
                self.network(setup),
                call,
                objective,
                batch=setup.batch,
                options=setup.options,
                update_bytes=passing,
            )
        return self._profiles[key]

    def shards(self, setup: Setup, gpus: int, *, machine: int | None = None) -> int:
        """Among how many of ``gpus`` GPUs the trainer would divide the weights; 1: each holds them all.

        ``machine``: GPUs of one machine. :class:`TwinflowError` where the trainer would refuse.
        """
        return shard_count(
            setup.parallel,
            world=gpus,
            machine=machine or min(gpus, MACHINE),
            by_itself=setup.lora is None,
            reason=not_sharded(setup.model, setup.optimizer, self.objective),
        )

    def _check_context(self, setup: Setup, context: int, gpus: int) -> None:
        """As the trainer does."""
        if context > 1:
            reason = not_divided(setup.model, self.objective, compiled=False)
            check_context(context, world=gpus, reason=reason)
            check_divisible(self.backbone.kind, self.backbone.config, count=context)

    def plan(
        self, setup: Setup, gpu: Gpu, gpus: int = 1, *, machine: int | None = None, shards: int | None = None
    ) -> Plan:
        """The plan of ``setup`` on ``gpus`` GPUs, ``machine`` of them in each machine.

        ``shards``: among how many of them the weights are divided, whether or not the trainer can do it.
        """
        context = setup.parallel.context if gpus > 1 else 1
        if shards is None:
            shards = self.shards(setup, gpus, machine=machine)
            self._check_context(setup, context, gpus)
        sharded = shards > 1
        network, step = self.network(setup), setup
        if (
            sharded and setup.autocast
        ):  # sharding casts weights as they travel, and adds gradients up in their dtype
            step = replace(setup, dtype="bf16", autocast=False)
        profile = self.profile(step, shards=shards)
        on_host = sharded and setup.parallel.cpu_offload
        gradients = 0.0 if on_host else 1 / shards
        passing = Passing()
        if sharded:
            gradients *= DTYPES[setup.dtype].itemsize / DTYPES[step.dtype].itemsize
            passing = Passing.of(self.network(step), setup.parallel, shards=shards, gpus=gpus)
        undivided = Undivided.of(self.network(step), step, context=context)
        timeline = profile.timeline(
            gradient_share=gradients,
            activation_share=1 / context,
            passing=lambda phase: passing.during(phase) + undivided.during(phase),
            released=passing.released,
        )
        kept = Kept.of(setup, network, profile, self.objective, shards=shards)
        staying = {
            name: count
            for name, count in self.backbone.encoders.items()
            if not setup.cached or (setup.previews and name == "vae")
        }
        host = timeline.host_peak + kept.host
        if on_host:
            host += sum(kept.parts.values()) + kept.gradients
        parts = ({} if on_host else dict(kept.parts)) | {
            "gradients": timeline.gradients_at_peak,
            "activations": timeline.peak - timeline.gradients_at_peak - timeline.passing_at_peak,
            ("whole blocks of shards" if sharded else "weights on their way"): timeline.passing_at_peak,
            "text encoder and autoencoder": sum(staying.values()) * DTYPES[setup.dtype].itemsize,
            "context and allocator": gpu.margin,
        }
        parts["weights"] = parts.get("weights", 0) + network.buffers
        opening = opening_bytes(network, shards=shards, on_host=on_host) + gpu.margin
        opening += parts["text encoder and autoencoder"]
        return Plan(
            model=self.backbone.name,
            gpu=gpu,
            gpus=gpus,
            machine=machine,
            setup=setup,
            shards=shards,
            context=context,
            parameters=network.parameters(),
            trained=network.parameters(trained=True),
            groups=network.groups(),
            components=tuple(Component(name=n, bytes=b) for n, b in parts.items() if b),
            host=host,
            opening=opening if sharded and opening > sum(parts.values()) else 0,
            profile=profile,
            traffic=int(kept.traffic),
        )
