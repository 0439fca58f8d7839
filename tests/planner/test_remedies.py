"""Changes that make a run fit."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from twinflow.cli import plan as _plan  # noqa: F401 - adds its command
from twinflow.errors import TwinflowError
from twinflow.objectives import FlowMatching
from twinflow.objectives.dmd2 import DMD2
from twinflow.planner import GPUS, Backbone, Planner, find_remedies, gpu_named, recipe_for
from twinflow.planner.hardware import GiB
from twinflow.planner.prediction import check_fits
from twinflow.planner.remedies import _candidates, _planned
from twinflow.planner.setup import Setup
from twinflow.planner.tables import memory_table
from twinflow.recipes.sections import Lora, Optimizer, Parallel

from .setups import setup


def test_remedies_fit_and_none_is_superfluous(sana: Planner) -> None:
    start = setup("sana-0.6b", batch=4, height=1024, width=1024)
    plan = sana.plan(start, gpu_named("h100-80"))
    for share in (0.9, 0.4):
        small = replace(plan.gpu, memory=int((plan.peak - plan.gpu.margin) * share) + 2 * GiB)
        tight = sana.plan(start, small)
        assert not tight.fits
        tried = find_remedies(sana, tight)
        assert tried[-1].plan.fits
        assert not any(entry.plan.fits for entry in tried[:-1])
        for left_out in tried:
            changed, gpus = start, 1
            for entry in tried:
                if entry is not left_out:
                    changed, gpus = entry.remedy.change(changed), entry.remedy.gpus or gpus
            assert not sana.plan(changed, small, gpus).fits


@pytest.mark.parametrize(
    "changes",
    [
        ["objective.teacher=frozen", "ema.decay=0.9", "model.dtype=fp32", "optimizer.name=adafactor"],
        ["objective={name: flow_matching}", "ema.decay=0.9", "ema.on_host=true"],
        ["objective.teacher=ema", "ema.decay=0.9", 'model.freeze=["*.norm*"]', "optimizer.name=muon"],
        ["data={kind: dataset, path: x, streaming: true}", "model.train=lora", "model.dtype=fp32"],
        ["model.train=lora", "parallel={mode: hybrid, shard_size: 2, cpu_offload: true}"],
        ["optimizer.name=muon", "parallel.mode=replicate", "train.accumulate=2", "data.cache=true"],
    ],
)
def test_remedies_do_what_they_say(sana: Planner, changes: list[str]) -> None:
    """Written behind the command, one after another, they give a recipe that is valid, and planned as they were."""

    def stated(changes: list[str]) -> Setup:
        recipe = recipe_for(None, changes, config="sana-0.6b")
        return Setup.of(recipe, size=256, frames=None, text_tokens=64)

    setup, written = stated(changes), list(changes)
    start = SimpleNamespace(setup=setup, gpus=2, machine=None)
    for remedy in _candidates(sana, start):  # type: ignore[arg-type]  # what it looks at
        changed = remedy.change(setup)
        if changed == setup and remedy.gpus is None:
            continue
        written += [word for word in shlex.split(remedy.on(setup).overrides) if "=" in word]
        assert stated(written) == changed, remedy.overrides
        setup = changed
    assert setup.lora is not None
    assert setup.quantize == "nf4"


def test_what_the_trainer_refuses_is_no_remedy() -> None:
    """DMD's networks can't share rows, so that of Wan parallel.context is left out; and machines stay what they are."""
    planner = Planner(Backbone.published("wan2.1-1.3b"), DMD2(times=(1.0,)))
    start = setup("wan2.1-1.3b", height=64, width=64, frames=1, parallel=Parallel(mode="replicate"))
    plan = replace(
        planner.plan(start, gpu_named("h100-80"), 2, machine=1), gpu=replace(GPUS["h100-80"], memory=0)
    )
    candidates = [remedy for remedy in _candidates(planner, plan) if remedy.overrides == "parallel.context=2"]
    assert len(candidates) == 1
    assert plan.machine == 1
    assert _planned(planner, plan, candidates[0].change(start), 2) is None
    hybrid = replace(start, parallel=Parallel(mode="hybrid"))
    sharded = Planner(planner.backbone, FlowMatching())
    two = sharded.plan(hybrid, gpu_named("h100-80"), 4, machine=2)
    again = _planned(sharded, two, hybrid, 4)
    assert again is not None
    assert again.peak == two.peak


def test_the_base_of_a_lora_is_divided_before_it_is_rounded(sana: Planner) -> None:
    """Where there are several GPUs, and room for all of it while it is opened; if there is not, it has fewer bits."""
    large = setup(
        "sana-0.6b", batch=16, lora=Lora(), checkpointing=True, offload=True, height=1024, width=1024
    )
    small = setup("sana-0.6b", batch=1, lora=Lora(), checkpointing=True, offload=True, height=256, width=256)

    def remedies(start: Setup) -> list[str]:
        """On four GPUs that lack some MiB for the peak of ``start``."""
        gpu = gpu_named("h100-80")
        plan = sana.plan(start, gpu, 4)
        assert not plan.sharded  # by itself
        memory = (plan.allocated - 2**26 + GiB) * 100 // 97  # whose margin is less
        return [
            t.remedy.overrides for t in find_remedies(sana, sana.plan(start, replace(gpu, memory=memory), 4))
        ]

    assert remedies(large) == ["parallel.mode=shard"]
    assert remedies(small) == ["model.quantize=int8"]


def test_who_opens_the_model_of_a_sharded_run_has_to_have_room_for_it(sana: Planner) -> None:
    """Its process holds all of it, and then its slices too; the steps may take less."""
    start = setup(
        "sana-0.6b", batch=1, height=64, width=64, checkpointing=True, parallel=Parallel(mode="shard")
    )
    plan = sana.plan(replace(start, optimizer=Optimizer(name="adafactor")), gpu_named("h100-80"), 8)
    weights = sum(w.nbytes for w in sana.network(start).weights)
    buffers = sana.network(start).buffers
    assert plan.opening == weights + weights // 8 + buffers + plan.gpu.margin > plan.peak
    assert plan.fits
    small = replace(plan, gpu=replace(plan.gpu, memory=(plan.peak + plan.opening) // 2))
    assert not small.fits
    assert "on the first GPU while the model is opened" in plan.summary()
    with pytest.raises(TwinflowError, match="does not fit"):
        check_fits(sana, small, force=False)
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(memory_table(small))
    assert re.search(r"while it opens, on the first .*does not fit", console.export_text())
    assert sana.plan(replace(start, parallel=Parallel(mode="replicate")), plan.gpu, 8).opening == 0
