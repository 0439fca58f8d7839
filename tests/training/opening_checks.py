"""``python -m training.opening_checks RANK WORLD FOLDER CHECK…``: one of the processes of test_opening.py."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from families import FAMILIES
from planner.sharded_steps import resident
from together import take_part
from twinflow import launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.training.parallel import layout_of
from twinflow.training.processes import Processes
from twinflow.training.shards import local, sharded_parameters

from .tiny import tiny_recipe

FAMILY = FAMILIES["sd3"]


RUNS = {"lora": ("lora", "replicate"), "full": ("full", "shard")}


def recipe_of(folder: Path, name: str, **sections: Any) -> Any:
    raw: dict[str, Any] = {
        "model": {"path": str(folder / "large"), "call": FAMILY.call},
        "data": {"kind": "shapeworld", "length": 4},
        "objective": {"name": "twinflow", "guidance": 0.3, "teacher": "ema", "longest_jump": None},
        "caption_dropout": 0.0,
        "train": {"steps": 2, "batch": 2},
        "checkpoint": {"every": 0},
        "parallel": {"mode": "shard"},
    }
    return tiny_recipe(folder / name, **(raw | sections))


def write_large(folder: Path) -> None:
    """A pipeline whose transformer, of six blocks, outweighs all else by far; by the first process."""
    if not Processes.current().is_main:
        return
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


def check_variants(folder: Path) -> None:
    """What is trained, and what is frozen, whole or cut: bit for bit that of an ordinary opening."""
    processes, together_for = Processes.current(), launch.together_for
    for train, mode in itertools.product(("lora", "full"), ("replicate", "shard")):
        model = {"path": "shapeworld-tiny", "train": train}
        recipe = recipe_of(folder, "unused", model=model, parallel={"mode": mode})
        torch.manual_seed(0)
        pipe = launch.build_model(recipe, None)
        assert any(p.is_meta for p in pipe.network.parameters()) == (not processes.is_main)
        pipe.freeze_unused()
        layout_of(recipe, recipe.build_objective(), processes, torch.device("cpu")).place(pipe.network)
        launch.together_for = lambda recipe: None
        torch.manual_seed(0)
        ordinary = launch.build_model(recipe, None)
        launch.together_for = together_for
        ordinary.freeze_unused()
        found = dict(pipe.network.named_parameters())
        slices = {name: p.full_tensor().detach() for name, p in sharded_parameters(pipe.network).items()}
        assert bool(slices) == (mode == "shard")
        for name, value in ordinary.network.named_parameters():
            own = slices.get(name, found[name])
            assert found.pop(name).requires_grad == value.requires_grad, name
            assert torch.equal(own.view(torch.int32), value.view(torch.int32)), (train, mode, name)
        assert not found
        for (name, buffer), (_, other) in zip(
            pipe.network.named_buffers(), ordinary.network.named_buffers(), strict=True
        ):
            assert torch.equal(buffer, other), name
        whole = sum(p.numel() for p in ordinary.network.parameters())
        held = sum(local(p).numel() for p in pipe.network.parameters())
        assert held == whole if mode == "replicate" else held < 0.6 * whole


def check_runs(folder: Path) -> None:
    """The same run, opened together and each for itself."""
    together_for = launch.together_for
    for variant, (train, mode) in RUNS.items():
        for name in ("together", "alone"):
            recipe = recipe_of(
                folder,
                f"{name}_{variant}",
                model={"path": "shapeworld-tiny", "train": train},
                parallel={"mode": mode},
                data={"kind": "shapeworld", "length": 4, "cache": True},
                preview={"every": 2, "count": 1, "nfe": [1]},
            )
            launch.together_for = together_for if name == "together" else lambda recipe: None
            launch.build_trainer(recipe).run()


def check_half(folder: Path) -> None:
    """bf16 weights, with tables of positions that are read in bf16 too (sd3), and some weights that are fp32 all the
    same (wan): the output is that of an ordinary opening bit for bit, and the gradients of all processes together are
    its up to the order in which bf16 numbers are added up."""
    together_for = launch.together_for
    for name in ("sd3", "wan"):
        family = FAMILIES[name]
        if Processes.current().is_main:
            family.stock().save_pretrained(folder / name)
        Processes.current().barrier()
        model = {"path": str(folder / name), "call": family.call, "dtype": "bf16"}
        train = {"steps": 2, "gradient_checkpointing": True, "batch": 2}
        recipe = recipe_of(folder, "unused", model=model, train=train)
        pipe = launch.build_model(recipe, None)
        pipe.freeze_unused()
        layout_of(recipe, recipe.build_objective(), Processes.current(), torch.device("cpu")).place(
            pipe.network
        )
        launch.together_for = lambda recipe: None
        ordinary = launch.build_model(recipe, None)
        launch.together_for = together_for
        ordinary.freeze_unused()
        for (place, buffer), (_, other) in zip(
            pipe.network.named_buffers(), ordinary.network.named_buffers(), strict=True
        ):
            assert buffer.dtype == other.dtype, (name, place)
            assert torch.equal(buffer, other), (name, place)
        cond = ordinary.encode_prompts(["red", "blue"])
        x, t = torch.randn(2, *pipe.latent_shape, generator=torch.Generator().manual_seed(0)), torch.ones(2)
        outputs = [own.field(x, t, 0.5 * t, cond) for own in (pipe, ordinary)]
        assert torch.equal(*outputs), name
        for output in outputs:
            output.float().square().mean().backward()
        found = dict(pipe.network.named_parameters())
        kinds = {p.dtype for p in found.values()}
        assert kinds == ({torch.bfloat16, torch.float32} if name == "wan" else {torch.bfloat16})
        for place, value in ordinary.network.named_parameters():
            own = found[place].grad
            assert (own is None) == (value.grad is None), (name, place)
            if value.grad is not None:
                assert own.dtype == value.dtype
                off = (own.full_tensor().float() - value.grad.float()).norm()
                assert off <= 2**-6 * value.grad.float().norm(), (name, place)


CHECKS = {
    "large": write_large,
    "memory": check_memory,
    "variants": check_variants,
    "half": check_half,
    "runs": check_runs,
}

if __name__ == "__main__":
    take_part(lambda folder, name: CHECKS[name](folder))
