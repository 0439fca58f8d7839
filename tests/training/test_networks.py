"""Methods of several networks: trained when their phase says so, resumed bit for bit, stopped at a budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from twinflow.config import load_recipe
from twinflow.objectives import Step
from twinflow.objectives.networks import STUDENT
from twinflow.training import RunResult, Trainer
from twinflow.training import accountant as accountant_module
from twinflow.training.accountant import Accountant, Budget
from twinflow.training.checkpoint import read_checkpoint
from twinflow.training.metrics import read_metrics
from twinflow.training.networks import Companions

from .test_resume import PowerCut, assert_same
from .tiny import Colors, TinyPipeline, tiny_recipe

METHODS: dict[str, dict[str, Any]] = {
    "flow_matching": {},
    "rcgm": {"guidance": 0.3, "teacher": "ema"},
    "twinflow": {"guidance": 0.3, "teacher": "frozen"},
    "consistency_training": {"target_decay": 0.5, "start_intervals": 2, "final_intervals": 8},
    "consistency_distillation": {"guidance": 1.0},
    "scm": {"guidance": 1.0, "tangent_warmup": 6},
    "mean_flow": {"guidance": 0.5},
    "progressive_distillation": {"start_steps": 4, "guidance": 1.0},
    "dmd": {"guidance": 1.0},
    "dmd2": {"guidance": 1.0, "critic_steps": 2, "times": [1.0, 0.5]},
    "sana_sprint": {"guidance": 1.0, "tangent_warmup": 6},
}


def recipe_of(output: Path, name: str, **sections: Any) -> Any:
    return tiny_recipe(output, objective={"name": name, **METHODS[name]}, **sections)


def train(output: Path, name: str, **options: Any) -> RunResult:
    sections = options.pop("sections", {})
    return Trainer(recipe_of(output, name, **sections), TinyPipeline(), Colors(), **options).run()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_resumed_run_is_the_same_run(tmp_path: Path, name: str) -> None:
    objective = recipe_of(tmp_path, name).build_objective()
    calls, step = 0, objective.step

    def failing(*arguments: Any, **named: Any) -> Step:  # in the third step after a checkpoint
        nonlocal calls
        calls += 1
        if calls == 7:
            raise PowerCut
        return step(*arguments, **named)

    objective.step = failing
    with pytest.raises(PowerCut):
        train(tmp_path / "cut", name, objective=objective)
    whole, resumed = train(tmp_path / "whole", name), train(tmp_path / "cut", name)
    assert resumed.step == whole.step == 12
    assert_same(whole, resumed)
    final = TinyPipeline.weights(whole.pipeline), TinyPipeline.weights(resumed.pipeline)
    assert all(torch.equal(final[0][key], final[1][key]) for key in final[0])
    # What a checkpoint holds is what the objective declares.
    files = {path.stem for path in whole.checkpoint.glob("*.safetensors")}
    assert {f[len("network_") :] for f in files if f.startswith("network_")} == set(objective.networks())
    trained = {key for key, spec in objective.networks().items() if spec.trained}
    assert {f[len("optimizer_") :] for f in files if f.startswith("optimizer_")} == trained
    losses = read_metrics(whole.output / "metrics.jsonl")
    assert all(torch.tensor(line["loss"]).isfinite() for line in losses)


def test_mixed_velocities_get_their_unconditional_condition(tmp_path: Path) -> None:
    """Of rows that are encoded on the way, too."""
    recipe = tiny_recipe(
        tmp_path,
        objective={"name": "mean_flow", "guidance_mix": 0.5},
        data={"cache": False},
        train={"steps": 1},
    )
    assert Trainer(recipe, TinyPipeline(), Colors()).run().step == 1


@pytest.mark.parametrize("name", list(METHODS))
def test_networks_move_in_their_phase_alone(tmp_path: Path, name: str) -> None:
    """The checkpoint of every step tells who moved: DMD2's critic twice for each step of the student, say."""
    sections = {"checkpoint": {"every": 1, "keep": 12}, "ema": {"decay": 0.9}, "train": {"steps": 6}}
    recipe = recipe_of(tmp_path, name, **sections)
    trainer = Trainer(recipe, TinyPipeline(), Colors())
    start = {key: value.clone() for key, value in trainer.pipe.network.state_dict().items()}
    result, objective = trainer.run(), trainer.objective
    folders = sorted((result.output / "checkpoints").glob("step_*"))
    snapshots = [read_checkpoint(folder).tensors for folder in folders]
    specs, seen = objective.networks(), set()
    for at in range(1, 6):
        before, after = snapshots[at - 1], snapshots[at]
        moved = {
            file
            for file in after
            if not file.startswith("random")
            and any(
                k not in before[file] or not torch.equal(v, before[file][k]) for k, v in after[file].items()
            )
        }
        trains = objective.begin(at, 6).trains
        expected = {f"{kind}_{key}" for key in trains for kind in ("network", "optimizer") if key != STUDENT}
        if STUDENT in trains:
            expected |= {"weights", "optimizer", "average"}
            expected |= {"teacher"} if recipe.objective.get("teacher") == "ema" else set()
            expected |= {f"network_{key}" for key, spec in specs.items() if spec.kind == "average"}
        stages = {f"network_{key}" for key, spec in specs.items() if spec.kind == "stage"}
        assert moved - stages == expected  # when a stage's teacher moves is told below
        seen.update(trains)
    assert seen == {STUDENT, *(key for key, spec in specs.items() if spec.trained)}
    if (frozen := trainer.averages.frozen) is not None:
        assert all(torch.equal(value, start[key]) for key, value in frozen.state_dict().items())


def test_the_teacher_of_a_stage_is_the_student_of_the_last_one(tmp_path: Path) -> None:
    sections = {"checkpoint": {"every": 1, "keep": 12}, "ema": {"decay": 0.0}}
    result = train(tmp_path, "progressive_distillation", sections=sections)
    saved = {
        int(folder.name.removeprefix("step_")): read_checkpoint(folder).tensors
        for folder in (result.output / "checkpoints").glob("step_*")
    }
    # Stages of 4, 2 and 1 steps: shares 1 : 2 : 2 of twelve steps end after 2, 7 and 12 of them.
    start = TinyPipeline().network.state_dict()
    for step in range(1, 13):
        teacher = saved[step]["network_teacher"]
        wanted = start if step <= 2 else saved[2]["weights"] if step <= 7 else saved[7]["weights"]
        assert all(torch.equal(teacher[key], wanted[key]) for key in teacher), step


def test_a_run_that_is_made_longer_goes_on_with_its_last_stage(tmp_path: Path) -> None:
    """By the longer run's own schedule it would be thrown back to two steps, which its teacher can't make."""
    name = "progressive_distillation"
    train(tmp_path, name, sections={"log": {"every": 1}})
    train(tmp_path, name, sections={"log": {"every": 1}, "train": {"steps": 24}})
    stages = [line["metric/stage_steps"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert stages[-12:] == [1.0] * 12
    assert sorted(stages, reverse=True) == stages


def test_a_copy_shares_what_is_not_trained() -> None:
    pipe = TinyPipeline()
    pipe.network.words.requires_grad_(False)
    recipe = recipe_of(Path("unused"), "dmd2")
    companions = Companions(
        recipe.build_objective(),
        pipe.network,
        recipe.optimizer,
        teacher=None,
        features=lambda network: network.features(
            torch.zeros(1, 3, 4, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)
        ),
        seed=0,
    )
    fake = companions.networks["fake_score"]
    assert fake.words.weight is pipe.network.words.weight
    assert fake.first.weight is not pipe.network.first.weight
    assert torch.equal(fake.first.weight, pipe.network.first.weight)
    assert not any(p is pipe.network.words.weight for p in companions.trained["fake_score"].parameters)


@pytest.mark.parametrize(("unit", "amount", "steps"), [("images", 18, 6), ("rows", 40, 5), ("steps", 5, 5)])
def test_a_budget_ends_the_run_and_a_resume_does_not_extend_it(
    tmp_path: Path, unit: Any, amount: float, steps: int
) -> None:
    """DMD on batches of 3: a critic's step evaluates 6 rows, a student's 3 + 6 + 3 with guidance."""
    budget = Budget(unit=unit, amount=amount)
    accountant = Accountant()
    result = train(tmp_path, "dmd", accountant=accountant, budget=budget)
    assert (result.status, result.step) == ("finished", steps)
    assert accountant.total(unit) >= amount > accountant.total(unit) - 12
    again = Accountant()
    resumed = train(tmp_path, "dmd", accountant=again, budget=budget)
    assert (resumed.status, resumed.step) == ("finished", steps)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == steps  # it was the last step
    assert again.total("flops") == accountant.total("flops") > 0
    assert load_recipe(tmp_path / "recipe.yaml").train.steps == 12


def test_a_budget_in_operations_ends_the_run(tmp_path: Path) -> None:
    """Flow matching has one phase, so that every step costs what the first one did."""
    counting = Accountant()
    train(tmp_path / "one", "flow_matching", accountant=counting, budget=Budget(unit="steps", amount=1))
    step = counting.total("flops")
    for amount, steps in ((4 * step, 4), (4 * step + 1, 5)):
        budget = Budget(unit="flops", amount=amount)
        for _ in range(2):  # and a resume does not extend it
            result = train(tmp_path / str(steps), "flow_matching", budget=budget)
            assert (result.status, result.step) == ("finished", steps)


def test_a_budget_in_seconds_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that two seconds pass on whenever it is asked: before a step and behind it."""
    clock = itertools.count(0, 2)
    monkeypatch.setattr(accountant_module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    for amount, steps in ((8, 4), (9, 5)):
        budget, accountant = Budget(unit="seconds", amount=amount), Accountant()
        result = train(tmp_path / str(steps), "flow_matching", budget=budget, accountant=accountant)
        assert (result.status, result.step, accountant.total("seconds")) == ("finished", steps, 2 * steps)
        resumed = train(tmp_path / str(steps), "flow_matching", budget=budget)
        assert (resumed.status, resumed.step) == ("finished", steps)


def test_holdings_tell_one_network_from_three(tmp_path: Path) -> None:
    def held(name: str, **objective: Any) -> Any:
        recipe = tiny_recipe(tmp_path / name, objective={"name": name, **objective}, ema={"decay": 0.0})
        trainer = Trainer(recipe, TinyPipeline(), Colors())
        trainer.run()
        return trainer.holdings()

    one = sum(p.numel() for p in TinyPipeline().network.parameters())
    twinflow, dmd = held("twinflow", teacher="self"), held("dmd")
    assert (twinflow.trained, twinflow.frozen) == (one, 0)
    assert (dmd.trained, dmd.frozen) == (2 * one, one)
    assert dmd.parameter_bytes == 3 * twinflow.parameter_bytes == 12 * one
    # Two moments a parameter, and a step count of 4 bytes a tensor.
    tensors = len(list(TinyPipeline().network.parameters()))
    assert twinflow.optimizer_bytes == 8 * one + 4 * tensors
    assert dmd.optimizer_bytes == 2 * twinflow.optimizer_bytes
