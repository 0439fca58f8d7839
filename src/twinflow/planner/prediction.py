"""What a run that is about to start will take, on the device that it starts on."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from twinflow.config import Recipe
from twinflow.errors import TwinflowError
from twinflow.pipelines.weightless import stock_class
from twinflow.planner import Planner, find_remedies, plan_recipe
from twinflow.planner.hardware import GPUS, Gpu
from twinflow.planner.inputs import IMAGE_TOKENS
from twinflow.planner.plan import Plan, size
from twinflow.planner.sources import SOURCE_AREAS, Backbone, image_tokens, measure_autoencoder
from twinflow.recipes.sections import Parallel
from twinflow.training.watch import Prediction

logger = logging.getLogger(__name__)


def predict(recipe: Recipe, model: Any) -> Prediction | None:
    """The plan of ``recipe`` for the loaded ``model``; None where none can be made.

    Parameters that never get a gradient are frozen. :class:`TwinflowError` on a GPU that is certain to be too small,
    unless ``train.force`` is set.
    """
    if recipe.model.part != "transformer" or not hasattr(model, "adapter"):
        return None
    device = model.device
    try:
        planner, plan = _plan_here(recipe, device, backbone_of(model))
    except Exception as error:  # a family that can't be called from its configuration is trained all the same
        return Prediction(line=f"no plan: {str(error).splitlines()[0]}", bytes=None)
    freeze_dead(model.pipe.transformer, plan)
    if device.type != "cuda":
        needed = size(plan.allocated)
        return Prediction(line=f"plan: {needed} for network, optimiser and activations", bytes=plan.allocated)
    check_fits(planner, plan, force=recipe.train.force)
    return Prediction(line=f"plan: {plan.summary()}", bytes=plan.allocated)


def check_stored(recipe: Recipe, device: torch.device) -> None:
    """:class:`TwinflowError`, with the remedies, if what ``recipe`` keeps on the GPU ``device`` is too much for it, by
    the configuration of its model alone: before any weight is read, which torch would have no memory for.

    Activations are left out, which depend on how long prompts are: of those :func:`predict` knows, of the loaded model.
    """
    if recipe.model.part != "transformer" or device.type != "cuda" or recipe.train.force:
        return
    try:
        planner, plan = _plan_here(recipe, device, Backbone.stored(recipe.model.path))
    except (
        Exception
    ) as error:  # the folder of a LoRA, say, or a family that can't be called from its configuration
        logger.info("nothing is planned before the model is opened: %s", error)
        return
    activations = sum(component.bytes for component in plan.components if component.name == "activations")
    if max(plan.peak - activations, plan.opening) > plan.gpu.memory:
        check_fits(planner, plan, force=False)


def _plan_here(recipe: Recipe, device: torch.device, backbone: Backbone) -> tuple[Planner, Plan]:
    """On ``device``, in as many processes as there are."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.parallel.mode == "auto" and device.type != "cuda":  # which shards on GPUs alone
        recipe = recipe.model_copy(
            update={"parallel": Parallel(mode="replicate", context=recipe.parallel.context)}
        )
    machine = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return plan_recipe(recipe, gpu=gpu_at(device), gpus=world, machine=machine, backbone=backbone)


def check_fits(planner: Planner, plan: Plan, *, force: bool) -> None:
    """:class:`TwinflowError` with what makes ``plan`` fit, if it does not; ``force`` starts it all the same."""
    if plan.fits or force:
        return
    tried = [f"  {t.remedy.overrides}: {size(t.plan.needed)}" for t in find_remedies(planner, plan)]
    remedies = ["each with those before it:", *tried] if tried else ["nothing is known that makes it smaller"]
    raise TwinflowError("\n".join([plan.summary(), *remedies, "train.force=true starts it all the same"]))


def freeze_dead(transformer: Any, plan: Plan) -> None:
    """Stop training what has no effect on the loss: optimisers, averages and checkpoints then leave it out."""
    parameters = dict(transformer.named_parameters())
    for name in plan.profile.dead:
        if name in parameters:
            parameters[name].requires_grad_(False)


def gpu_at(device: torch.device) -> Gpu:
    """The GPU ``device`` with the memory that it has; for a CPU a nameless one."""
    if device.type != "cuda":
        return Gpu(name="cpu", memory=1 << 60, bf16=1.0, fp32=1.0, bandwidth=1.0)
    found = torch.cuda.get_device_properties(device)
    like = next(
        (gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in found.name.lower().replace(" ", "")), None
    )
    return Gpu(
        name=found.name,
        memory=found.total_memory,
        bf16=like.bf16 if like else float("nan"),
        fp32=like.fp32 if like else float("nan"),
        bandwidth=like.bandwidth if like else float("nan"),
    )


def backbone_of(pipe: Any) -> Backbone:
    """Of a loaded :class:`~twinflow.pipelines.AnyStepPipeline`."""
    stock = pipe.pipe
    compression = measure_autoencoder(stock_class(stock.vae), stock.vae.config)
    height = pipe.adapter.geometry().codec.scale.shape[-2]
    with torch.no_grad():
        tokens = pipe.encode_prompts(["a"]).tensors.get("encoder_hidden_states")
    others = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in stock.components.items()
        if isinstance(part, torch.nn.Module) and name != "transformer"
    }
    seeing = getattr(stock, "image_encoder", None)
    return Backbone(
        name=type(stock).__name__,
        kind=type(stock.transformer),
        config=dict(stock.transformer.config),
        compression=compression,
        text_tokens=256 if tokens is None else tokens.shape[1],
        size=height * compression.spatial,
        source_area=SOURCE_AREAS.get(type(stock).__name__),
        image_tokens=IMAGE_TOKENS if seeing is None else image_tokens(seeing.config.to_dict()),
        encoders=others,
    )
