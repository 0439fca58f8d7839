"""``python -m planner.sharded_steps RANK WORLD FOLDER CASE…``: one of the processes of test_sharded.py.

Trains two steps of the real trainer, and measures what the second one allocates.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from families import FAMILIES
from together import take_part
from training.test_families import Noises
from training.tiny import tiny_recipe
from twinflow.pipelines import AnyStepPipeline
from twinflow.planner import plan_recipe
from twinflow.planner.prediction import backbone_of, gpu_at
from twinflow.training import Trainer
from twinflow.training.shards import local

from .middle_sized import middle_sized_stock

FAMILY = FAMILIES["qwen"]
PIXELS = 128
STEPS = 2  # the first one makes the optimiser's states
# In the order of their names: what is sharded how, and the optimiser.
CASES: dict[str, dict[str, Any]] = {
    "replicate": {"parallel": {"mode": "replicate"}},
    "shard": {"parallel": {"mode": "shard"}},
    "kept": {"parallel": {"mode": "shard", "reshard_after_forward": False}},
    "bf16_in_backward": {
        "parallel": {"mode": "shard"},
        "model": {"path": "-", "dtype": "bf16"},
        "optimizer": {"name": "adamw8bit", "in_backward": True, "clip": None},
    },
    "adafactor": {"parallel": {"mode": "shard"}, "optimizer": {"name": "adafactor"}},
    "autocast": {
        "parallel": {"mode": "shard"},
        "train": {"steps": STEPS, "batch": 4, "precision": "bf16", "gradient_checkpointing": True},
    },
    "hybrid": {"parallel": {"mode": "hybrid", "shard_size": 2}},
    "hybrid_kept_average": {
        "parallel": {"mode": "hybrid", "shard_size": 2},
        "ema": {"decay": 0.9, "teacher_decay": 0.9},
    },
}


def recipe_of(case: str, output: Path | str = "-") -> Any:
    sections: dict[str, Any] = {
        "model": {"path": "-"},
        "data": {"kind": "folder", "path": "-", "cache": True, "size": PIXELS},
        "objective": {"name": "twinflow", "guidance": 0.5, "teacher": "self", "longest_jump": None},
        "caption_dropout": 0.0,
        "ema": {"decay": 0.0},
        "optimizer": {"lr": 1e-4},
        "train": {"steps": STEPS, "batch": 4, "gradient_checkpointing": True},
        "checkpoint": {"every": 0},
    }
    return tiny_recipe(output, **(sections | CASES[case]))


def middle_sized(dtype: torch.dtype) -> AnyStepPipeline:
    """Seven blocks that outweigh what they compute on 64 tokens: what is sharded shows."""
    stock = middle_sized_stock(heads=12, dtype=dtype)
    return AnyStepPipeline(stock, call=FAMILY.call | {"height": PIXELS, "width": PIXELS})


class Sized(Noises):
    def __init__(self) -> None:
        super().__init__(FAMILY)
        self.shape = (3, PIXELS, PIXELS)


class Watched(Trainer):
    """Measures how far the process grows in its last step, on top of what it had before.

    What was allocated is what is resident, if large blocks are taken from the system one by one: the environment of
    the process sees to that (MALLOC_MMAP_THRESHOLD_). torch's own count would miss what the threads of gloo free.
    """

    def _make_step(self) -> None:
        if self.state.step < STEPS - 1:
            super()._make_step()
            return
        self.before = self.kept()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the highest size so far is forgotten
        start = resident("VmRSS")
        super()._make_step()
        self.peak = resident("VmHWM") - start

    def kept(self) -> int:
        network = self.pipe.network
        tensors = [local(p) for p in network.parameters()] + list(network.buffers())
        tensors += self.state.optimizers.state_dict()[0].values()
        for average in self.averages.by_file().values():
            tensors += average.state_dict()[0].values()
        return sum(t.nbytes for t in tensors)


def resident(which: str) -> int:
    """Bytes, as the kernel counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def measure(case: str, folder: Path) -> None:
    recipe = recipe_of(case, folder / case)
    pipe = middle_sized(torch.bfloat16 if recipe.model.dtype == "bf16" else torch.float32)
    pipe.enable_gradient_checkpointing()
    pipe.network.train()
    run = Watched(recipe, pipe, Sized())
    run.run()
    backbone, rank = backbone_of(pipe), dist.get_rank()
    if rank == 0:
        world = dist.get_world_size()
        gpu = gpu_at(torch.device("cpu"))
        _, plan = plan_recipe(
            recipe, gpu=gpu, gpus=world, machine=world, backbone=backbone, text_tokens=backbone.text_tokens
        )
        found = {
            "kept": run.before,
            "peak": run.peak,
            "planned": {c.name: c.bytes for c in plan.components},
            "shards": plan.shards,
            "allocated": plan.allocated,
        }
        (folder / f"{case}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    take_part(lambda folder, case: measure(case, folder))
