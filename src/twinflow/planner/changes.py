"""Changes of a setup that remedies are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twinflow.pipelines.quantise import Kind
from twinflow.planner.setup import Setup
from twinflow.recipes.sections import Parallel


def to_shards(setup: Setup) -> Setup:
    """A LoRA with its base in shards, which ``auto`` leaves whole."""
    if setup.lora is None or _divided(setup):
        return setup
    return replace(setup, parallel=setup.parallel.model_copy(update={"mode": "shard"}))


def in_one_piece(setup: Setup) -> str:
    """The overrides that undo what divides a base, as :func:`to_quantised` does."""
    undone = {"mode": "auto", "shard_size": "null", "cpu_offload": "false"} if _divided(setup) else {}
    held = Parallel().model_dump()
    differing = [key for key in undone if getattr(setup.parallel, key) != held[key]]
    return " ".join(f"parallel.{key}={undone[key]}" for key in differing)


def _divided(setup: Setup) -> bool:
    return setup.parallel.mode in ("shard", "hybrid")


def to_quantised(kind: Kind) -> Callable[[Setup], Setup]:
    """To ``kind``, if there is a LoRA and its base has more bits."""

    def change(setup: Setup) -> Setup:
        if setup.lora is None or setup.quantize in (kind, "nf4"):
            return setup
        if _divided(setup):
            whole = {"mode": "auto", "shard_size": None, "cpu_offload": False}
            setup = replace(setup, parallel=setup.parallel.model_copy(update=whole))
        return replace(setup, quantize=kind)

    return change


_ORDER = ("adamw", "radam", "muon", "adamw8bit", "adamw4bit", "adafactor")


def to_optimizer(name: str) -> Callable[[Setup], Setup]:
    """To the optimiser ``name``, if it keeps less than that of the setup."""

    def change(setup: Setup) -> Setup:
        if _ORDER.index(name) <= _ORDER.index(setup.optimizer.name):
            return setup
        return setup.with_optimizer(name=name)

    return change


def shardable(setup: Setup) -> Setup:
    """With shards, and an optimiser that works on slices."""
    if setup.parallel.mode == "replicate":
        setup = replace(setup, parallel=Parallel())
    return setup.with_optimizer(name="adamw8bit") if setup.optimizer.name == "muon" else setup


def for_shards(setup: Setup) -> str:
    """What :func:`shardable` changes, as overrides."""
    mode = ["parallel.mode=auto"] if setup.parallel.mode == "replicate" else []
    return " ".join(mode + (["optimizer.name=adamw8bit"] if setup.optimizer.name == "muon" else []))


def to_context(count: int) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, parallel=setup.parallel.model_copy(update={"context": count}))


def to_batch(batch: int) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, batch=batch)
