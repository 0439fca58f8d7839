"""Recipes: each mistake is one error that names the key, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinflow.config import Recipe, load_recipe, make_recipe, recipe_yaml
from twinflow.errors import TwinflowError
from twinflow.objectives import TwinFlow
from twinflow.objectives.presets import preset

GOOD = """
model: {path: some/model}
data: {kind: shapeworld, level: tiny, length: 100}
objective: {name: twinflow, teacher: ema, guidance: 0.3, roles: {one_step: 2, tangent: 1, any_step: 1, fake: 2}}
train: {steps: 100, batch: 8}
output: runs/good
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "trian.steps=5",
            r"trian is not a recipe key \(did you mean 'train'\?\); allowed in a recipe: model",
        ),
        (
            "train.btach=5",
            r"train.btach is not a recipe key \(did you mean 'batch'\?\); allowed in train: steps",
        ),
        ("data.size=5", r"data.size is not a recipe key.*allowed in data: cache"),
        ("objective.guidence=0.1", r"objective.guidence is not a recipe key \(did you mean 'guidance'\?\)"),
        ("objective.roles.fakes=1", r"objective.roles.fakes is not a recipe key \(did you mean 'fake'\?\)"),
        ("train.batch=0", r"train.batch = 0 is not allowed: input should be greater than or equal to 1"),
        ("train.batch=many", r"train.batch = 'many' is not allowed: input should be a valid integer"),
        ("train.batch=1.5", r"train.batch = 1.5 is not allowed"),
        ("train.batch=true", r"train.batch = True is not allowed"),
        ("train=5", r"train = 5 is not allowed"),
        ("optimizer.lr=-1e-4", r"optimizer.lr = -0.0001 is not allowed: input should be greater than 0"),
        ("optimizer.lr=.nan", r"optimizer.lr = nan is not allowed"),
        ("optimizer.betas=[0.9]", r"optimizer.betas"),
        ("model.lora.rnk=4", r"model.lora.rnk is not a recipe key \(did you mean 'rank'\?\)"),
        ("model.lora.rank=4", r"model.lora says how a LoRA is trained, but model.train = 'full'"),
        ("model.lora.dropout=1.0", r"model.lora.dropout = 1.0 is not allowed"),
        ("model.quantize=int8", r"model.quantize = 'int8' needs model.train = 'lora'"),
        ("model={path: a, train: lora, part: autoencoder}", r"model.train = 'lora' is for the transformer"),
        ("optimizer.weight_decay=-1", r"optimizer.weight_decay = -1 is not allowed"),
        ("optimizer.warmup_steps=101", r"optimizer.warmup_steps = 101 must not exceed train.steps = 100"),
        (
            "optimizer.schedule=cosin",
            r"optimizer.schedule = 'cosin' is not allowed: input should be 'constant'",
        ),
        ("ema.decay=1", r"ema.decay = 1 is not allowed: input should be less than 1"),
        ("ema.teacher_decay=0", r"objective.teacher = 'ema' needs an average, but ema.teacher_decay = 0"),
        ("objective.roles.fake=-1", r"objective.roles.fake must be a finite weight of at least 0, got -1"),
        (
            "objective.roles.fake=no",
            r"objective.roles.fake = False is not allowed: input should be a valid number",
        ),
        (
            "objective.roles={one_step: 0, fake: 0, tangent: 0, any_step: 0}",
            r"objective.roles: every weight is 0, so no row has a loss",
        ),
        ("objective.guidance=high", r"objective.guidance = 'high' is not allowed"),
        ("objective.guidance=2", r"objective.guidance must be below 1 with teacher='ema', got 2"),
        ("objective.time={mean: big}", r"objective.time.mean = 'big' is not allowed"),
        ("objective.loss=l3", r"objective.loss = 'l3' is not allowed: input should be 'barron' or 'l2'"),
        ("objective.name=twinflw", r"objective.name = 'twinflw' is not known \(did you mean 'twinflow'\?\)"),
        (
            "unconditional_prompt=null",
            r"objective.guidance = 0.3 compares with .* unconditional_prompt = null",
        ),
        ("data.level=huge", r"data.level = 'huge' is not a level of ShapeWorld: use tiny or full"),
        ("data.kind=shapes", r"data.kind = 'shapes' is not known .* use one of shapeworld, digits, folder"),
        ("data.kind=folder", r"data.path is missing"),
        ("preview.nfe=[1,0]", r"preview.nfe.1 = 0 is not allowed"),
        ("caption_dropout=1.5", r"caption_dropout = 1.5 is not allowed"),
        ("train.steps", r"'train.steps' is not an override: write key=value"),
        ("=5", r"'=5' is not an override"),
        ("train..steps=5", r"'train..steps=5' is not an override"),
        ("train.steps=[1", r"the value of 'train.steps=\[1' can't be read"),
    ],
)
def test_bad_values(good: Path, override: str, said: str) -> None:
    with pytest.raises(TwinflowError, match=said):
        load_recipe(good, [override])


@pytest.mark.parametrize("how", ["true", "blocks"])
def test_autoencoders_are_not_compiled(good: Path, how: str) -> None:
    """Inductor's code for them has gradients of zero (benchmarks/compiled_autoencoder.py)."""
    part = "model={path: a, part: autoencoder}"
    with pytest.raises(TwinflowError, match=r"train.compile = (True|blocks): .* set train.compile to false"):
        load_recipe(good, [part, f"train.compile={how}"])
    load_recipe(good, [part])


def test_mixed_velocities_without_unconditional_prompt(good: Path) -> None:
    mixed = ["objective={name: mean_flow, guidance_mix: 0.5}", "unconditional_prompt=null"]
    with pytest.raises(TwinflowError, match=r"objective.guidance_mix = 0.5 compares .*guidance_mix to 1"):
        load_recipe(good, mixed)
    load_recipe(good, mixed[:1])


def test_dropout_without_unconditional_prompt(good: Path) -> None:
    with pytest.raises(TwinflowError, match=r"caption_dropout = 0.1 trains on the unconditional prompt"):
        load_recipe(good, ["caption_dropout=0.1", "objective.guidance=0", "unconditional_prompt=null"])
    load_recipe(good, ["objective.guidance=0", "unconditional_prompt=null"])  # is possible


def test_every_mistake_is_told_at_once(good: Path) -> None:
    with pytest.raises(TwinflowError) as caught:
        load_recipe(good, ["train.batch=0", "log.evry=3", "ema.decay=2"])
    assert all(key in str(caught.value) for key in ("train.batch", "log.evry", "ema.decay"))


@pytest.mark.parametrize("section", ["model", "data", "objective", "train", "output"])
def test_a_missing_section(good: Path, tmp_path: Path, section: str) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith(section)]
    with pytest.raises(TwinflowError, match=f"{section} is missing"):
        load_recipe(write(tmp_path, "part.yaml", "\n".join(lines)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "must consist of `key: value` lines"),
        ("a: [", "is not a readable recipe"),
        ("extends: 5\n", "extends = 5 is not allowed"),
        ("extends: nowhere.yaml\n", "there is no recipe .*nowhere.yaml, which .*bad.yaml extends"),
        ("extends: bad.yaml\n", "extends itself"),
        ("model:\n\tpath: a\n", "is not a readable recipe(.|\n)*indented with spaces"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TwinflowError, match=said):
        load_recipe(write(tmp_path, "bad.yaml", text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(TwinflowError, match="it is a folder$"):
        load_recipe(tmp_path)
    write(tmp_path, "recipe.yaml", GOOD)
    with pytest.raises(TwinflowError, match=r"it is a folder. Its recipe is .*recipe.yaml$"):
        load_recipe(tmp_path)
    with pytest.raises(TwinflowError, match="the recipe comes first"):
        load_recipe("train.steps=3", [str(tmp_path / "recipe.yaml")])


def test_the_resolved_recipe_loads_back(good: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        good, ["optimizer.lr=3e-5", "preview.prompts=[a red circle,a star]", "preview.every=5"]
    )
    text = recipe_yaml(recipe)
    assert load_recipe(write(tmp_path, "resolved.yaml", text)) == recipe
    assert recipe.optimizer.lr == 3e-5
    assert recipe.preview.prompts == ("a red circle", "a star")
    assert "barron_alpha" in text, "defaults are written out, so that a later change of them changes no run"


def test_recipes_extend_one_another(good: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    middle = write(tmp_path / "sub", "middle.yaml", "extends: ../good.yaml\ntrain: {batch: 2}\n")
    child = write(
        tmp_path, "child.yaml", f"extends: sub/{middle.name}\ntrain: {{steps: 7}}\noutput: runs/child\n"
    )
    recipe = load_recipe(child, ["train.seed=3"])
    assert (recipe.train.steps, recipe.train.batch, recipe.train.seed) == (7, 2, 3)
    assert recipe.output == "runs/child"
    assert recipe.objective["roles"]["fake"] == 2


def test_a_section_of_another_kind_replaces_its_parent(good: Path, tmp_path: Path) -> None:
    text = "extends: good.yaml\nobjective: {name: flow_matching, loss: l2}\ndata: some/folder\nmodel: other\n"
    recipe = load_recipe(write(tmp_path, "child.yaml", text))
    assert recipe.objective["name"] == "flow_matching"
    assert recipe.data.kind == "folder"
    assert recipe.data.path == "some/folder"
    assert recipe.model.path == "other"


def test_the_command_lines_shorthands(good: Path) -> None:
    recipe = load_recipe(good, ["model=another/model", "data=pictures"])
    assert recipe.model.path == "another/model"
    assert recipe.data.kind == "folder"


def test_a_partial_mapping_of_roles_names_those_above_zero(good: Path) -> None:
    recipe = load_recipe(good)
    assert recipe.objective["roles"]["consistency"] == 0
    objective = recipe.build_objective()
    assert isinstance(objective, TwinFlow)
    assert objective.guidance == 0.3
    assert objective == load_recipe(good).build_objective()


def test_a_recipe_is_frozen(good: Path) -> None:
    recipe: Any = load_recipe(good)
    with pytest.raises(ValueError, match="frozen"):
        recipe.output = "elsewhere"


def test_make_recipe_says_where_it_is_from() -> None:
    with pytest.raises(TwinflowError, match="quickstart:"):
        make_recipe({}, source="quickstart")
    assert "unconditional_prompt" in Recipe.model_fields


def test_changing_one_role_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    head = "model: m\ndata: {kind: shapeworld}\ntrain: {steps: 1, batch: 1}\noutput: out\n"
    path.write_text(head + "objective: {name: twinflow}\n")
    roles = load_recipe(path, ["objective.roles.fake=2"]).objective["roles"]
    assert roles == {"one_step": 1, "tangent": 1, "any_step": 1, "fake": 2, "consistency": 0}
    path.write_text(head + "objective: {name: twinflow, roles: {any_step: 1}}\n")
    roles = load_recipe(path, ["objective.roles.fake=2"]).objective["roles"]
    assert roles == {"one_step": 0, "tangent": 0, "any_step": 1, "fake": 2, "consistency": 0}


def test_a_preset_stands_for_its_settings_and_keys_beside_it_come_first(tmp_path: Path) -> None:
    head = "model: m\ndata: {kind: digits}\ntrain: {steps: 10, batch: 1}\noutput: o\n"
    path = write(tmp_path, "p.yaml", head + "objective: {preset: paper, name: twinflow, guidance: 0.6}\n")
    recipe = load_recipe(path)
    paper = preset("twinflow", "paper")
    expected = {"name": "twinflow"} | paper | {"guidance": 0.6, "lockstep": False}
    assert recipe.objective == expected
    assert load_recipe(write(tmp_path, "again.yaml", recipe_yaml(recipe))) == recipe
    # One role of a preset's; all settings of a preset over those of the recipe that is extended.
    one_step = preset("twinflow", "paper_lora_order_1")["roles"] | {"fake": 2}
    first = load_recipe(path, ["objective.preset=paper_lora_order_1", "objective.roles.fake=2"]).objective
    assert (first["roles"], first["order"]) == (one_step, 1)
    child = write(tmp_path, "child.yaml", "extends: again.yaml\nobjective: {preset: paper_qwen}\n")
    assert load_recipe(child).objective == expected | preset("twinflow", "paper_qwen")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            "{name: twinflow, preset: papers}",
            r"objective.preset = 'papers' is not known \(did you mean 'paper'",
        ),
        (
            "{name: rcgm, preset: paper}",
            "objective.preset = 'paper' is not allowed: only twinflow has presets",
        ),
        ("{name: twinflow, preset: 3}", "objective.preset = '3' is not known"),
    ],
)
def test_unknown_presets(tmp_path: Path, objective: str, said: str) -> None:
    head = "model: m\ndata: {kind: digits}\ntrain: {steps: 10, batch: 1}\noutput: o\n"
    with pytest.raises(TwinflowError, match=said):
        load_recipe(write(tmp_path, "p.yaml", f"{head}objective: {objective}\n"))
