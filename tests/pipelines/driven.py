"""Tiny pipelines of every family, driven as fields."""

from __future__ import annotations

from typing import Any

import torch
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


def gradients(any_step: AnyStepPipeline, x: Tensor, t: Tensor, r: Tensor, cond: Any) -> dict[str, Tensor]:
    """Of the mean square of the field's output, by parameter."""
    any_step.network.zero_grad()
    any_step.field(x, t, r, cond).square().mean().backward()
    named = any_step.network.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float) -> None:
    """To ``rtol`` of each number, or to a hundredth of that of the largest one."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=rtol, atol=0.01 * rtol * largest, msg=f"{name}: {{}}".format
        )
