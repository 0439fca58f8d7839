"""Runs of the tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from twinflow.training import RunResult, Trainer

from .tiny import Colors, TinyPipeline, tiny_recipe


def train(
    output: Path, *, pipe: Any = None, built: Any = None, data: Any = None, **sections: Any
) -> tuple[RunResult, Trainer]:
    recipe = tiny_recipe(output, **sections)
    trainer = Trainer(recipe, pipe or TinyPipeline(), data or Colors(), objective=built)
    return trainer.run(), trainer


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.pipe.network.parameters()]
