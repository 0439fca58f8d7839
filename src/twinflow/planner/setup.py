"""What of a recipe decides memory and time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from twinflow.config import Recipe
from twinflow.pipelines.quantise import Kind
from twinflow.planner.run import StepOptions
from twinflow.recipes.sections import Ema, Lora, Model, Optimizer, Parallel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A recipe's settings, in a form that can be changed one by one and planned again."""

    batch: int
    steps: int
    accumulate: int = 1
    dtype: str = "bf16"  # of the stored weights
    autocast: bool = False
    target_time: bool = True
    optimizer: Optimizer = field(default_factory=Optimizer)
    ema: Ema = field(default_factory=Ema)
    teacher: str = "self"
    checkpointing: bool = False
    offload: bool = False
    freeze: tuple[str, ...] = ()
    lora: Lora | None = None
    quantize: Kind | None = None  # of the base under it
    height: int = 512
    width: int = 512
    frames: int | None = None
    edits: bool = False  # a source picture of the same size is shown to the transformer beside the one drawn
    text_tokens: int = 256
    cached: bool = True  # text encoder and autoencoder leave the GPU once everything is encoded
    streamed: bool = False  # which data.cache can't be together with
    previews: bool = False  # but the autoencoder, which decodes the pictures
    parallel: Parallel = field(default_factory=Parallel)

    @classmethod
    def of(cls, recipe: Recipe, *, size: int, frames: int | None, text_tokens: int) -> Setup:
        """That of ``recipe``; ``size``, ``frames`` and ``text_tokens`` where it does not say."""
        call, data, train = recipe.model.call, recipe.data, recipe.train
        height, width = _sides(data) or (call.get("height", size), call.get("width", size))
        return cls(
            batch=train.batch,
            steps=train.steps,
            accumulate=train.accumulate,
            dtype=recipe.model.dtype,
            autocast=train.precision == "bf16" and recipe.model.dtype != "bf16",
            target_time=recipe.model.target_time,
            optimizer=recipe.optimizer,
            ema=recipe.ema,
            teacher=getattr(recipe.build_objective(), "teacher", "self"),
            checkpointing=train.gradient_checkpointing,
            offload=train.offload,
            freeze=recipe.model.freeze,
            lora=recipe.model.lora if recipe.model.train == "lora" else None,
            quantize=recipe.model.quantize,
            height=int(height),
            width=int(width),
            frames=getattr(data, "frames", call.get("num_frames", frames)),
            edits="image" in call,
            text_tokens=int(call.get("max_sequence_length", text_tokens)),
            cached=bool(data.cache),
            streamed=getattr(data, "streaming", False),
            previews=recipe.preview.every > 0,
            parallel=recipe.parallel,
        )

    @property
    def options(self) -> StepOptions:
        return StepOptions(
            checkpointing=self.checkpointing,
            offload=self.offload,
            in_backward=self.optimizer.in_backward,
            autocast=self.autocast,
        )

    @property
    def model(self) -> Model:
        """What a recipe says of the model, as far as it decides whether it is sharded."""
        return Model(path="-", train="full" if self.lora is None else "lora", quantize=self.quantize)

    @property
    def half(self) -> bool:
        """Whether the maths is in 16 bits."""
        return self.autocast or self.dtype == "bf16"

    def with_optimizer(self, **changes: Any) -> Setup:
        return replace(self, optimizer=self.optimizer.model_copy(update=changes))


def _sides(data: Any) -> tuple[int, int] | None:
    """Height and width of the data's pictures, if the data set says so."""
    if data.kind == "shapeworld":
        from twinflow.data.shapeworld.world import LEVELS

        side = int(LEVELS[data.level].size)
        return side, side
    if data.kind == "digits":
        return 8, 8
    size = getattr(data, "size", None)
    return (size, size) if isinstance(size, int) else size
