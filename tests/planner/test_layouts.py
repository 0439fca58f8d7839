"""Plans of several GPUs: weights and tokens that are divided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twinflow.cli import plan as _plan  # noqa: F401 - adds its command
from twinflow.errors import TwinflowError
from twinflow.objectives import FlowMatching
from twinflow.planner import Backbone, Planner, find_remedies, gpu_named, plan_recipe, recipe_for
from twinflow.recipes.sections import Ema, Lora, Optimizer, Parallel

from .setups import IN_BACKWARD, setup


def test_sharding_casts_weights_as_they_travel(sana: Planner) -> None:
    """fp32 weights under autocast: blocks and activations as with bf16 weights; what stays is fp32, and shared."""
    gpu, start = gpu_named("h100-80"), setup("sana-0.6b", batch=2, checkpointing=True)
    sizes = [
        {c.name: c.bytes for c in sana.plan(some, gpu, 8).components}
        for some in (start, replace(start, dtype="fp32", autocast=True))
    ]
    assert sizes[1]["weights"] == pytest.approx(2 * sizes[0]["weights"], rel=0.01)
    assert sizes[1]["optimiser states"] == pytest.approx(2 * sizes[0]["optimiser states"], rel=0.01)
    assert sizes[1]["whole blocks of shards"] == sizes[0]["whole blocks of shards"]
    passing = [size["activations"] + size["gradients"] for size in sizes]
    # Slices of the gradients are fp32 instead of bf16; at the peak most of them are there.
    assert passing[1] - passing[0] == pytest.approx(2 * sana.network(start).parameters() / 8, rel=0.1)


def test_what_can_not_be_sharded_is_repeated(sana: Planner) -> None:
    """Where the recipe leaves it open; where it asks for shards, the plan refuses as the trainer would."""
    start, gpu = setup("sana-0.6b"), gpu_named("h100-80")
    for changes in ({}, {"optimizer": IN_BACKWARD}, {"optimizer": Optimizer(name="adafactor")}):
        assert sana.plan(replace(start, **changes), gpu, 8).shards == 8
    for changes in ({"optimizer": Optimizer(name="muon")}, {"lora": Lora()}):
        assert sana.plan(replace(start, **changes), gpu, 8).shards == 1
    with pytest.raises(TwinflowError, match="'muon' orthogonalises whole matrices"):
        sana.plan(replace(start, optimizer=Optimizer(name="muon"), parallel=Parallel(mode="shard")), gpu, 8)


def test_the_parallel_section_is_planned(sana: Planner) -> None:
    gpu = gpu_named("h100-80")
    start = setup("sana-0.6b", batch=2, checkpointing=True, ema=Ema(decay=0.9))

    def sizes(gpus: int, machine: int | None = None, **parallel: object) -> dict[str, int]:
        made = sana.plan(replace(start, parallel=Parallel(**parallel)), gpu, gpus, machine=machine)  # type: ignore[arg-type]
        return {c.name: c.bytes for c in made.components} | {"shards": made.shards, "host": made.host}

    alone = sizes(1)
    assert sizes(16, mode="replicate") == alone  # one process is like another
    shared = sizes(16, mode="shard")
    for name in ("weights", "optimiser states", "averages"):
        assert shared[name] == pytest.approx(alone[name] / 16, rel=0.02)
    assert shared["activations"] == pytest.approx(alone["activations"], rel=0.02)
    by_machine = sizes(16, mode="hybrid")  # of 8 GPUs, if nothing is said
    assert by_machine["shards"] == 8
    assert sizes(16, 4, mode="hybrid")["shards"] == sizes(16, mode="hybrid", shard_size=4)["shards"] == 4
    assert by_machine["weights"] == pytest.approx(alone["weights"] / 8, rel=0.02)
    kept = sizes(16, mode="shard", reshard_after_forward=False)
    assert kept["whole blocks of shards"] > alone["weights"] > shared["whole blocks of shards"]
    away = sizes(16, mode="shard", cpu_offload=True)
    assert "optimiser states" not in away
    # With the gradients, which arrive there.
    moved = sum(shared[name] for name in ("optimiser states", "averages")) + 2 * shared["weights"]
    assert away["host"] == pytest.approx(moved, rel=0.02)
    with pytest.raises(TwinflowError, match="shard_size = 3 does not divide the 16"):
        sizes(16, mode="hybrid", shard_size=3)


def test_processes_that_share_rows_are_planned() -> None:
    """Activations and work are divided, what is kept is not; refused as the trainer refuses."""
    gpu, planner = gpu_named("h100-80"), Planner(Backbone.published("wan2.1-1.3b"), FlowMatching())
    start = setup("wan2.1-1.3b", checkpointing=True, frames=17)
    alone, four = (
        planner.plan(replace(start, parallel=Parallel(mode="replicate", context=n)), gpu, 4) for n in (1, 4)
    )
    sizes = [{c.name: c.bytes for c in plan.components} for plan in (alone, four)]
    for name in ("weights", "optimiser states"):
        assert sizes[1][name] == sizes[0][name]
    assert sizes[1]["activations"] == pytest.approx(sizes[0]["activations"] / 4, rel=0.02)
    assert (alone.rows, four.rows) == (4, 1)
    work = [plan.gpu.seconds(plan.profile.step_flops / plan.context, half=True) for plan in (alone, four)]
    assert alone.step_seconds - four.step_seconds == pytest.approx(work[0] - work[1])
    assert (four.to_json()["context"], alone.to_json()["context"]) == (4, 1)
    for count, gpus, message in ((8, 8, "the 12 attention heads"), (3, 4, "does not divide the 4 processes")):
        with pytest.raises(TwinflowError, match=message):
            planner.plan(replace(start, parallel=Parallel(context=count)), gpu, gpus)


def test_dividing_tokens_is_a_remedy() -> None:
    """Of one clip on several GPUs, when all that leaves it on one is in use."""
    planner = Planner(Backbone.published("wan2.1-1.3b"), FlowMatching())
    start = setup("wan2.1-1.3b", checkpointing=True, offload=True, lora=Lora(), quantize="nf4", frames=81)
    plan = planner.plan(start, gpu_named("rtx4090-24"), 4)
    small = replace(plan, gpu=replace(plan.gpu, memory=plan.peak - 1))
    tried = find_remedies(planner, small)
    assert tried[-1].plan.fits
    assert [entry.remedy.overrides for entry in tried] == ["parallel.context=2"]


def test_the_command_plans_the_recipes_layout() -> None:
    """As the trainer would lay it out; remedies keep to it."""
    changes = ["data.size=256", "train.batch=1", "parallel.mode=hybrid", "parallel.shard_size=2"]
    recipe = recipe_for(None, changes, config="sana-0.6b")
    _, plan = plan_recipe(recipe, gpu=gpu_named("rtx4090-24"), gpus=4, config="sana-0.6b")
    assert (plan.gpus, plan.shards) == (4, 2)
    assert plan.to_json()["shards"] == 2
