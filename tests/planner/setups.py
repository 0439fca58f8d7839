"""Small setups of published models."""

from __future__ import annotations

from dataclasses import replace

from twinflow.planner import Setup
from twinflow.recipes.sections import Ema, Optimizer

IN_BACKWARD = Optimizer(name="adamw4bit", in_backward=True, clip=None)


def setup(name: str, **changes: object) -> Setup:
    frames = 81 if "wan" in name else None
    plain = Setup(batch=1, steps=1, target_time=False, text_tokens=256, frames=frames, ema=Ema(decay=0))
    return replace(plain, **changes)  # type: ignore[arg-type]
