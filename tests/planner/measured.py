"""A real training step on real tensors, watched: what plans are compared with."""

from __future__ import annotations

from typing import Any

import torch

from twinflow.data.loader import EncodedBatch
from twinflow.objectives import STUDENT, Phase, TwinFlow
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.freezing import freeze_parameters
from twinflow.planner.plan import Planner
from twinflow.planner.prediction import backbone_of
from twinflow.planner.setup import Setup
from twinflow.planner.step import StepProfile, _checkpointed, count_rows
from twinflow.planner.tracker import StorageTracker
from twinflow.recipes.sections import Ema, Optimizer
from twinflow.training.ema import trained_parameters
from twinflow.training.finite import FiniteGuard
from twinflow.training.networks import Trained
from twinflow.training.optim import Optimizers
from twinflow.training.parallel import Replicated
from twinflow.training.processes import Processes
from twinflow.training.step import OptimizerStep


def objective() -> TwinFlow:
    return TwinFlow(teacher="self", guidance=0.5)


def setup_of(pipe: AnyStepPipeline, *, batch: int, optimizer: Optimizer, **options: Any) -> Setup:
    backbone = backbone_of(pipe)
    latents = pipe.adapter.geometry().codec.scale.shape
    spatial = backbone.compression.spatial
    frames = 1 + (latents[1] - 1) * backbone.compression.temporal if len(latents) == 4 else None
    return Setup(
        batch=batch,
        steps=1,
        dtype="fp32",
        optimizer=optimizer,
        ema=Ema(decay=0),
        height=latents[-2] * spatial,
        width=latents[-1] * spatial,
        frames=frames,
        text_tokens=backbone.text_tokens,
        **options,
    )


def planned(pipe: AnyStepPipeline, setup: Setup) -> StepProfile:
    return Planner(backbone_of(pipe), objective()).profile(setup)


def measured(pipe: AnyStepPipeline, setup: Setup) -> int:
    """Bytes beyond weights and states at the peak of the second step, at the rows that the plan takes."""
    network = pipe.pipe.transformer
    freeze_parameters(network, setup.freeze)
    parameters = trained_parameters(pipe.network)
    weights, optimizers = list(parameters.values()), Optimizers(parameters, setup.optimizer)
    method = objective()
    _, state, generator = count_rows(method, setup.batch)
    step = OptimizerStep(
        field=pipe.field,
        teacher=None,
        objective=method,
        trained={STUDENT: Trained(parameters=weights, leaves=weights, optimizers=optimizers)},
        networks={},
        layout=Replicated(Processes()),
        guard=FiniteGuard(),
        generator=generator,
        clip=setup.optimizer.clip,
        offload=setup.offload,
    )
    with torch.no_grad():
        cond, uncond = pipe.encode_prompts(["a"] * setup.batch), pipe.encode_prompts(["a"])
    start = generator.get_state()
    peak = 0
    for _ in range(2):  # the first one makes the states
        method.load_state_dict(state)
        generator.set_state(start)
        tracker = StorageTracker()
        tracker.ignore([*pipe.network.parameters(), *pipe.network.buffers()])
        checkpointing = _checkpointed(network) if setup.checkpointing else torch.enable_grad()
        with checkpointing, tracker:
            x = torch.zeros(setup.batch, *pipe.latent_shape)
            step(1, [EncodedBatch(x=x, cond=cond, uncond=uncond)], phase=Phase(), count=1, lr=1e-4)
            del x
        peak = tracker.peak
    if optimizers.in_backward is not None:
        optimizers.in_backward.remove()
    return peak
