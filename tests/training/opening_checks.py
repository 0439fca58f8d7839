"""``python -m training.opening_checks RANK WORLD FOLDER``: one of the processes of test_opening.py."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed as dist

from families import FAMILIES
from planner.sharded_steps import resident
from twinflow import launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.training.parallel import layout_of
from twinflow.training.processes import Processes
from twinflow.training.shards import sharded_parameters

from .tiny import tiny_recipe

FAMILY = FAMILIES["sd3"]


def recipe_of(folder: Path, name: str, **sections: Any) -> Any:
    raw: dict[str, Any] = {
        "model": {"path": str(folder / "large"), "call": FAMILY.call},
        "data": {"kind": "shapeworld", "length": 4},
        "objective": {"name": "twinflow", "guidance": 0.3, "teacher": "ema"},
        "caption_dropout": 0.0,
        "train": {"steps": 2, "batch": 2},
        "checkpoint": {"every": 0},
        "parallel": {"mode": "shard"},
    }
    return tiny_recipe(folder / name, **(raw | sections))


def write_large(folder: Path) -> None:
    """A pipeline whose transformer, of six blocks, outweighs all else by far."""
    stock = FAMILY.stock()
    torch.manual_seed(0)
    config = dict(stock.transformer.config) | {"num_layers": 6, "attention_head_dim": 64}
    config |= {"num_attention_heads": 8, "caption_projection_dim": 512}
    stock.transformer = diffusers.SD3Transformer2DModel.from_config(config)
    stock.save_pretrained(folder / "large")


def grown(start: int) -> int:
    return resident("VmHWM") - start


def reset() -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def check_memory(folder: Path) -> None:
    """How far a process grows while it opens and cuts the model, and while it opens the whole of it."""
    recipe, processes = recipe_of(folder, "memory"), Processes.current()
    start = reset()
    pipe = launch.build_model(recipe, None)
    pipe.freeze_unused()
    layout = layout_of(recipe, recipe.build_objective(), processes, torch.device("cpu"))
    layout.place(pipe.network)
    together = grown(start)
    slices = sharded_parameters(pipe.network)
    whole = {name: p.full_tensor().detach() for name, p in slices.items()}
    buffers = dict(pipe.network.named_buffers())
    start = reset()
    ordinary = AnyStepPipeline.from_pretrained(recipe.model.path, call=recipe.model.call)
    alone = grown(start)
    ordinary.freeze_unused()
    own = dict(ordinary.network.named_parameters())
    assert own.keys() == whole.keys()
    for name, value in own.items():
        assert slices[name].requires_grad == value.requires_grad, name
        assert torch.equal(value.view(torch.int32), whole[name].view(torch.int32)), name
    for name, buffer in ordinary.network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert type(pipe.pipe.transformer) is type(ordinary.pipe.transformer)
    assert pipe.adapter.wiring == ordinary.adapter.wiring
    size = sum(value.nbytes for value in own.values())
    found = {"together": together, "alone": alone, "size": size}
    (folder / f"memory_{processes.rank}.json").write_text(json.dumps(found))


def check_runs(folder: Path) -> None:
    """The same run, opened together and each for itself."""
    model = {"path": "shapeworld-tiny"}
    for name in ("together", "alone"):
        recipe = recipe_of(folder, name, model=model, data={"kind": "shapeworld", "length": 4, "cache": True})
        if name == "alone":
            launch.together_for = lambda recipe, device: None  # type: ignore[assignment]
        run = launch.build_trainer(recipe)
        run.run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world, place = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=int(rank), world_size=int(world))
    if int(rank) == 0:
        write_large(Path(place))
    dist.barrier()
    check_memory(Path(place))
    dist.barrier()
    check_runs(Path(place))
    dist.destroy_process_group()
