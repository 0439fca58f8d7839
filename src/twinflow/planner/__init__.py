"""Memory and time of a run before it is launched, from configurations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinflow.config import Recipe, load_recipe
from twinflow.errors import TwinflowError
from twinflow.planner.hardware import GPUS, Gpu, gpu_named
from twinflow.planner.plan import Plan
from twinflow.planner.planner import Planner
from twinflow.planner.remedies import Tried, find_remedies
from twinflow.planner.setup import Setup
from twinflow.planner.sources import Backbone, published
from twinflow.recipes.load import changed_recipe
from twinflow.recipes.typed import typed_recipe

__all__ = [
    "GPUS",
    "Backbone",
    "Gpu",
    "Plan",
    "Planner",
    "Setup",
    "Tried",
    "find_remedies",
    "gpu_named",
    "plan_recipe",
    "published",
    "recipe_for",
]


def recipe_for(path: Path | None, overrides: Sequence[str], *, config: str | None) -> Recipe:
    """The recipe ``path``; without one, TwinFlow as its authors train a model of 20 B on the published configuration
    ``config``, or with our defaults on the model that ``overrides`` name."""
    if path is not None:
        return load_recipe(path, overrides)
    if config is None and not overrides:
        raise TwinflowError(
            "give a recipe, or model=PATH and data=PATH, or the name of a published configuration with --config"
        )
    if config is None:
        return typed_recipe(overrides)
    layer = {
        "model": {"path": config, "dtype": "bf16"},
        "data": {"kind": "folder", "path": "pictures", "size": Backbone.published(config).size},
        "objective": {"name": "twinflow", "preset": "paper_qwen"},
        "ema": {"decay": 0},
        "train": {"steps": 10000, "batch": 4},
        "output": "runs/plan",
    }
    return changed_recipe(layer, overrides, source="the command line")


def plan_recipe(
    recipe: Recipe,
    *,
    gpu: Gpu,
    gpus: int = 1,
    machine: int | None = None,
    config: str | None = None,
    text_tokens: int | None = None,
    frames: int | None = None,
    backbone: Backbone | None = None,
) -> tuple[Planner, Plan]:
    """Plan ``recipe`` on ``gpus`` GPUs, ``machine`` of them in each machine, laid out as ``recipe.parallel`` says.

    ``config`` is a published configuration in the place of the recipe's model. ``frames`` and ``text_tokens``, where
    they are given, take the place of what recipe and model say.

    :class:`TwinflowError` for what can't be planned: a part other than the transformer, or a transformer that
    can't be called from its configuration.
    """
    if recipe.model.part != "transformer":
        raise TwinflowError(f"model.part = {recipe.model.part!r}: plans are made for transformers")
    numbers = {"--gpus": gpus, "--machine": machine, "--text-tokens": text_tokens, "--frames": frames}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise TwinflowError(f"{name} must be at least 1, got {number}")
    if backbone is None:
        backbone = Backbone.published(config) if config else Backbone.stored(recipe.model.path)
    setup = Setup.of(recipe, size=backbone.size, frames=backbone.frames, text_tokens=backbone.text_tokens)
    asked: dict[str, Any] = {"frames": frames, "text_tokens": text_tokens}
    setup = replace(setup, **{key: value for key, value in asked.items() if value is not None})
    planner = Planner(backbone, recipe.build_objective())
    return planner, planner.plan(setup, gpu, gpus, machine=machine)
