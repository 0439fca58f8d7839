"""A real training step on real tensors, watched: what plans are compared with."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.data.loader import EncodedBatch
from twinflow.objectives import STUDENT, Objective, TwinFlow
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.freezing import freeze_parameters
from twinflow.planner import Planner
from twinflow.planner.prediction import backbone_of
from twinflow.planner.run import checkpointed
from twinflow.planner.schedule import count_steps
from twinflow.planner.setup import Setup
from twinflow.planner.step import StepProfile
from twinflow.planner.tracker import StorageTracker
from twinflow.recipes.sections import Ema, Optimizer
from twinflow.training.averages import Averages
from twinflow.training.finite import FiniteGuard
from twinflow.training.networks import Companions, Trained
from twinflow.training.parallel import Replicated
from twinflow.training.processes import Processes
from twinflow.training.step import AutocastField, OptimizerStep


def objective() -> TwinFlow:
    return TwinFlow(teacher="self", guidance=0.5, longest_jump=None)


def setup_of(pipe: AnyStepPipeline, *, batch: int, optimizer: Optimizer, **options: Any) -> Setup:
    backbone = backbone_of(pipe)
    latents = pipe.adapter.geometry().codec.scale.shape
    spatial = backbone.compression.spatial
    frames = 1 + (latents[1] - 1) * backbone.compression.temporal if len(latents) == 4 else None
    with torch.no_grad():
        lists = encoded(pipe, 1).lists  # of families whose prompts are not padded
    texts = [entries[0] for entries in lists.values() if isinstance(entries[0], Tensor)]
    lengths = [len(text) for text in texts if text.dim() == 2]
    return Setup(
        batch=batch,
        steps=1,
        dtype="fp32",
        optimizer=optimizer,
        ema=Ema(decay=0),
        height=latents[-2] * spatial,
        width=latents[-1] * spatial,
        frames=frames,
        edits="image" in pipe.adapter.wiring.call,
        text_tokens=max(lengths, default=backbone.text_tokens),
        **options,
    )


def encoded(pipe: AnyStepPipeline, count: int) -> Condition:
    """Of a prompt, and of the source picture that an editing pipeline was opened with."""
    source = pipe.adapter.wiring.call.get("image")
    return pipe.encode_prompts(["a"] * count, images=None if source is None else [source] * count)


def planned(pipe: AnyStepPipeline, setup: Setup, method: Objective | None = None) -> StepProfile:
    return Planner(backbone_of(pipe), method or objective()).profile(setup)


def measured(pipe: AnyStepPipeline, setup: Setup, method: Objective | None = None) -> int:
    """Bytes beyond weights and states at the peak of a step that has its states, at the rows that the plan takes."""
    method = method or objective()
    network, transformer = pipe.network, pipe.pipe.transformer
    freeze_parameters(transformer, setup.freeze)
    teacher = Averages.of(network, setup.ema, teacher=getattr(method, "teacher", "self")).teacher
    student = Trained.of(network, setup.optimizer)
    with torch.no_grad():
        cond, uncond = encoded(pipe, setup.batch), encoded(pipe, 1)

    def field_of(name: str, copy: nn.Module) -> Any:
        field = pipe.field_of(copy)
        autocast = AutocastField(field, device=torch.device("cpu"), dtype=torch.bfloat16)
        return autocast if setup.autocast else field

    def features(source: nn.Module) -> list[Tensor]:
        x = torch.zeros(1, *pipe.latent_shape)
        with torch.no_grad():
            return field_of("", source).features(x, torch.ones(1), encoded(pipe, 1))

    companions = Companions(method, network, setup.optimizer, teacher=teacher, features=features, seed=0)
    trained = {STUDENT: student, **companions.trained}
    networks = [network, *companions.networks.values(), *([teacher] if teacher is not None else [])]
    generator = torch.Generator()
    step = OptimizerStep(
        field=field_of(STUDENT, network),
        teacher=None if teacher is None else field_of("teacher", teacher),
        objective=method,
        trained=trained,
        networks=companions.given(field_of),
        layout=Replicated(Processes(), torch.device("cpu")),
        guard=FiniteGuard(),
        generator=generator,
        clip=setup.optimizer.clip,
        offload=networks if setup.offload else None,
    )
    peak = 0
    with ExitStack() as stack:
        for some in networks if setup.checkpointing else []:
            if hasattr(some, "transformer"):
                stack.enter_context(checkpointed(some.transformer))
        for entry in count_steps(method, setup.batch):
            for _ in range(2):  # the first one makes the states
                generator.set_state(entry.begin(method).get_state())
                tracker = StorageTracker()
                for some in networks:
                    tracker.ignore([*some.parameters(), *some.buffers()])
                with tracker:
                    x = torch.zeros(setup.batch, *pipe.latent_shape)
                    data = [EncodedBatch(x=x, cond=cond, uncond=uncond)]
                    step(1, data, phase=entry.phase, count=1, lr=1e-4)
                    del x, data
            peak = max(peak, tracker.peak)
    for own in trained.values():
        if own.optimizers.in_backward is not None:
            own.optimizers.in_backward.remove()
    return peak
