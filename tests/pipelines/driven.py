"""Tiny pipelines of every family, driven as fields."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from twinflow.pipelines import AnyStepPipeline
from twinflow.sampling import seeded_noise

PROMPTS = ["a red circle", "two dogs and a rather long tail of words", "a"]
SOURCES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
SIZE = 32 * 32  # pixels of the pictures that the edit pipeline works on; the stock ones have a million


def opened(family: Any, **options: Any) -> AnyStepPipeline:
    return AnyStepPipeline(family.stock(), call=family.call, **options)


def noise(any_step: AnyStepPipeline, rows: int = 3) -> Tensor:
    return seeded_noise(any_step.latent_shape, range(rows))
