"""Plans of published models, and errors."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from torch import Size
from typer.testing import CliRunner

from twinflow.cli import plan as _plan  # noqa: F401 - adds its command
from twinflow.cli.app import app
from twinflow.config import make_recipe
from twinflow.errors import TwinflowError
from twinflow.objectives import FlowMatching, Objective, TwinFlow
from twinflow.objectives.dmd2 import DMD2
from twinflow.planner import Backbone, Planner, find_remedies, gpu_named, plan_recipe, recipe_for
from twinflow.planner.comparison import compare
from twinflow.planner.prediction import check_fits
from twinflow.planner.schedule import Schedule, count_steps
from twinflow.planner.setup import Setup
from twinflow.planner.tables import memory_table, model_table, time_table
from twinflow.recipes.sections import Ema, Lora

from .setups import setup


def schedule(objective: Objective, batch: int) -> Schedule:
    return Schedule.mean(count_steps(objective, batch))


def test_the_schedule_is_the_objectives() -> None:
    lean = schedule(TwinFlow(teacher="self", guidance=0.5, delta=1e-6, tangent_gap=1.0, longest_jump=None), 4)
    # Of four rows: one sample, two guided twice, three jumps twice, and two for the rectification.
    assert (lean.calls, lean.rows) == pytest.approx((4, 13 / 4))
    plain = schedule(FlowMatching(), 4)
    assert (plain.calls, plain.rows) == pytest.approx((1, 0))
    ema = schedule(TwinFlow(teacher="ema"), 4)
    assert 0 < ema.teacher_rows < ema.rows


def test_phases_of_several_networks_are_counted() -> None:
    critic, student = count_steps(DMD2(times=(1.0,), guidance=2.0), 4)
    assert critic.phase.trains == ("fake_score", "discriminator")
    assert (critic.share, student.share) == (50 / 60, 10 / 60)
    # A sample, the fake score's own call, and the judgement of real and fake together.
    assert (critic.schedule.calls, critic.schedule.rows) == (3, 1)
    # A sample and its judgement; the teacher guided, in two rows, and the fake score.
    assert (student.schedule.calls, student.schedule.rows) == (4, 3)
    assert student.schedule.teacher_rows == 2


def test_memory_adds_up_and_changes_as_it_should(sana: Planner) -> None:
    gpu = gpu_named("h100-80")
    start = setup("sana-0.6b", batch=2)
    plan = sana.plan(start, gpu)
    sizes = {c.name: c.bytes for c in plan.components}
    assert sum(sizes.values()) == plan.peak
    assert sizes["optimiser states"] == 2 * sizes["weights"]  # AdamW in the weights' dtype
    average = sana.plan(replace(start, ema=Ema(decay=0.9)), gpu)
    assert average.peak - plan.peak == pytest.approx(plan.trained * 2, rel=0.01)
    away = sana.plan(replace(start, ema=Ema(decay=0.9, on_host=True)), gpu)
    assert (away.peak, away.host) == (plan.peak, average.peak - plan.peak)
    small = replace(average, gpu=replace(gpu, memory=plan.peak))
    changes = [
        entry.remedy.overrides for entry in find_remedies(sana, small) if "ema" in entry.remedy.overrides
    ]
    assert changes in ([], ["ema.on_host=true ema.every=10"])
    checkpointed = sana.plan(replace(start, checkpointing=True), gpu)
    assert checkpointed.peak < plan.peak
    assert checkpointed.profile.step_flops > 1.2 * plan.profile.step_flops
    eight = sana.plan(start, gpu, 8)
    assert eight.peak < plan.peak
    states = {c.name: c.bytes for c in eight.components}["optimiser states"]
    assert states == pytest.approx(
        sizes["optimiser states"] / 8, rel=0.01
    )  # of rows that 8 does not divide more


def test_a_run_that_can_not_fit_is_not_started(sana: Planner) -> None:
    """The error has the remedies; what is forced is started."""
    start = setup("sana-0.6b", batch=8)
    plan = sana.plan(start, gpu_named("h100-80"))
    check_fits(sana, plan, force=False)
    small = replace(plan, gpu=replace(plan.gpu, memory=plan.peak // 2))
    with pytest.raises(TwinflowError, match=r"(?s)does not fit.*train\.\S+=\S+.*: .* GiB\ntrain.force=true"):
        check_fits(sana, small, force=False)
    check_fits(sana, small, force=True)


def test_three_networks_are_the_objectives_own(sana: Planner) -> None:
    start = setup("sana-0.6b", batch=2, checkpointing=True)
    plan = sana.plan(start, gpu_named("h100-80"))
    planner = Planner(sana.backbone, DMD2(times=(1.0,)))
    three = planner.plan(replace(start, teacher="frozen"), plan.gpu)
    ours, theirs = ({c.name: c.bytes for c in some.components} for some in (plan, three))
    heads = 4 * sum(Size(shape).numel() for shape in three.profile.modules["discriminator"])
    assert heads > 0
    copy = sum(w.nbytes for w in sana.network(start).weights)
    assert theirs["frozen teacher"] == copy
    assert theirs["other networks"] == copy + heads
    assert theirs["optimiser states of other networks"] == ours["optimiser states"] + 2 * heads
    assert {phase.name for phase in three.profile.phases} == {"critic", "student"}
    one, other = compare(planner, three)
    assert (one.trained, one.frozen, other.trained, other.frozen) == (2, 1, 1, 0)
    assert other.method == "TwinFlow"


def test_a_recipe_with_a_lora(sana: Planner) -> None:
    changes = [
        "model.train=lora",
        "model.lora.rank=8",
        "model.quantize=nf4",
        "train.gradient_checkpointing=true",
    ]
    recipe = recipe_for(None, [*changes, "data.size=256", "train.batch=1"], config="sana-0.6b")
    planner, plan = plan_recipe(recipe, gpu=gpu_named("rtx4090-24"), config="sana-0.6b")
    assert plan.setup.checkpointing
    assert plan.setup.lora == Lora(rank=8)
    sizes = {c.name: c.bytes for c in plan.components}
    assert sizes["optimiser states"] == 2 * 4 * plan.trained
    adapters = sum(w.numel for w in planner.network(plan.setup).weights if ".lora_" in w.name)
    assert 0 < plan.trained - adapters < 0.01 * plan.parameters  # the target-time branch
    whole = sum(w.nbytes for w in sana.network(setup("sana-0.6b")).weights)
    assert 0.25 < (sizes["weights"] - 4 * plan.trained) / whole < 0.7  # convolutions are not quantised
    twice = replace(plan.setup, lora=Lora(rank=16))
    assert planner.plan(twice, plan.gpu).trained - plan.trained == adapters


def test_the_command_prints_json_and_tables(tmp_path: Path) -> None:
    arguments = ["plan", "train.batch=2", "--config", "sana-0.6b", "--gpu", "rtx4090-24", "--no-remedies"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["batch"] == 2
    assert found["peak"] == sum(found["memory"].values())
    assert found["comparison"][1]["peak"] > found["peak"]
    said = Path("docs/scaling.md").read_text().partition("With `--json`")[2].partition("How it is done")[0]
    rows = [line.split("|")[1] for line in said.splitlines() if line.startswith("| `")]
    assert set(found) == set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert all(f"`{key}`" in said for key in found["comparison"][0])


def test_the_embedded_model_is_planned_from_its_folder() -> None:
    recipe = recipe_for(
        Path("recipes/shapeworld_twinflow.yaml"),
        ["objective.teacher=ema", "objective.guidance=0.6", "ema.teacher_decay=0.9"],
        config=None,
    )
    _, plan = plan_recipe(recipe, gpu=gpu_named("rtx4090-24"))
    assert plan.fits
    assert plan.setup.height == 32
    averages = next(c.bytes for c in plan.components if c.name == "averages")
    assert averages == 2 * 4 * plan.trained  # one to draw with, and one that teaches
    _, shorter = plan_recipe(
        recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"call": {"max_sequence_length": 9}})}
        ),
        gpu=gpu_named("rtx4090-24"),
        text_tokens=5,  # what is asked for, whatever the recipe says
    )
    assert shorter.setup.text_tokens == 5
    assert re.fullmatch(
        r"shapeworld-tiny: 3\.\d\d M parameters, .*; at least [\d.]+ m?s a step", plan.summary()
    )
    console = Console(record=True, width=120, file=io.StringIO())
    for table in (model_table(plan), memory_table(plan), time_table(plan)):
        console.print(table)
    shown = console.export_text()
    assert "816.3 k │" in shown  # of transformer_blocks.ff
    assert not re.search(r"\b0\.0|e[+-]\d", shown), shown
    slow = replace(plan, gpu=replace(plan.gpu, bf16=float("nan"), fp32=float("nan")))
    assert "s a step" in plan.summary()
    assert "nan" not in slow.summary()


def test_sizes_are_those_of_the_data() -> None:
    """Of pictures that are no squares, and of clips, before the call's and the model's own."""
    raw = {
        "model": {"path": "-", "call": {"height": 64, "num_frames": 9}},
        "objective": {"name": "twinflow", "image_free": True},
        "train": {"steps": 1, "batch": 1},
        "output": "-",
    }

    def planned(**data: object) -> tuple[object, ...]:
        made = Setup.of(make_recipe(raw | {"data": data}), size=512, frames=81, text_tokens=256)
        return made.height, made.width, made.frames

    assert planned(kind="folder", path="-", size=[1024, 512]) == (1024, 512, 9)
    assert planned(kind="video", path="-", size=256, frames=17) == (256, 256, 17)
    assert planned(kind="prompts", path="-") == (64, 512, 9)


def test_what_can_not_be_planned_is_said() -> None:
    with pytest.raises(TwinflowError, match=r"--gpu = 'h100' is not known \(did you mean 'h100-80'"):
        gpu_named("h100")
    with pytest.raises(TwinflowError, match=r"did you mean 'qwen-image'"):
        Backbone.published("qwen")
    with pytest.raises(TwinflowError, match="plans are made for transformers"):
        plan_recipe(
            recipe_for(Path("recipes/shapeworld_vae.yaml"), [], config=None), gpu=gpu_named("h100-80")
        )
    with pytest.raises(TwinflowError, match="give a recipe"):
        recipe_for(None, [], config=None)
    recipe = recipe_for(None, ["model.freeze=[nothing*]", "data.size=64"], config="sana-0.6b")
    with pytest.raises(TwinflowError, match=r"'nothing\*' matches no parameter"):
        plan_recipe(recipe, gpu=gpu_named("h100-80"), config="sana-0.6b")
    recipe = recipe_for(None, [], config="sana-0.6b")
    for name in ("gpus", "machine", "text_tokens", "frames"):
        with pytest.raises(TwinflowError, match=f"--{name.replace('_', '-')} must be at least 1, got -2"):
            plan_recipe(recipe, gpu=gpu_named("h100-80"), config="sana-0.6b", **{name: -2})  # type: ignore[arg-type]
