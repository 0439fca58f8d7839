"""Commands without a recipe: a model and data are named, the rest are defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinflow.assets import QUICKSTART_RECIPE
from twinflow.cli import cache, plan  # noqa: F401 - each puts its command on the app
from twinflow.cli.app import app
from twinflow.config import load_recipe, recipe_of
from twinflow.data.shapeworld import write_folder
from twinflow.errors import TwinflowError
from twinflow.planner import recipe_for
from twinflow.recipes.objective import resolve_objective
from twinflow.training.metrics import read_metrics

SHORT = ("train.batch=2", "log.every=1", "log.tensorboard=false")
TINY = ("model=shapeworld-tiny", "data=pictures")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_and_pictures_are_all_that_is_typed(here: Path) -> None:
    """Planned, cached and trained; the recipe that is written beside the run goes on with it."""
    write_folder("pictures", count=4)
    assert recipe_for(None, TINY, config=None) == recipe_of(TINY)  # what is planned
    run("cache", *TINY, "data.cache=cached")
    words = (*TINY, "data.cache=cached", *SHORT)
    run("train", *words, "train.steps=2")
    written = here / "runs" / "shapeworld-tiny"
    assert load_recipe(written / "recipe.yaml") == recipe_of([*words, "train.steps=2"])
    run("train", str(written / "recipe.yaml"), "train.steps=3")
    assert [line["step"] for line in read_metrics(written / "metrics.jsonl")] == [1, 2, 3]
    with pytest.raises(TwinflowError, match="its optimizer.lr is 0.0001, .*Choose another output"):
        run("train", *words, "optimizer.lr=1e-5")


def test_the_objective_is_what_won_here() -> None:
    tuned = resolve_objective({"name": "twinflow", "preset": "tuned"})
    assert recipe_of(TINY).objective == tuned
    # The quick start's is the same, but for the length of its jumps.
    quickstart = load_recipe(QUICKSTART_RECIPE).objective
    assert {key for key in tuned if tuned[key] != quickstart[key]} == {"longest_jump"}
    changed = recipe_of([*TINY, "objective.guidance=2", "objective.roles.fake=3"]).objective
    assert (changed["guidance"], changed["roles"]["fake"], changed["roles"]["one_step"]) == (2, 3, 1)
    assert recipe_of([*TINY, "objective={name: rcgm}"]).objective["roles"]["fake"] == 0
    preset = ["objective={name: twinflow, preset: paper}"]
    assert recipe_of([*TINY, "objective.preset=paper"]) == recipe_of([*TINY, *preset])


@pytest.mark.parametrize(
    ("data", "kind", "path"),
    [
        ("pictures", "folder", "pictures"),
        ("not/there/yet", "folder", "not/there/yet"),
        ("pictures/*.parquet", "dataset", "pictures/*.parquet"),
        ("a.tar", "dataset", "a.tar"),
        ("org/name", "dataset", "org/name"),
        ("lines.txt", "prompts", "lines.txt"),
        ("shapeworld", "shapeworld", None),
    ],
)
def test_what_data_is_of_which_kind(here: Path, data: str, kind: str, path: str | None) -> None:
    Path("pictures").mkdir()
    Path("a.tar").touch()
    more = ["objective.image_free=true"] if kind == "prompts" else []
    section = recipe_of(["model=a/b", f"data={data}", *more]).data
    assert (section.kind, getattr(section, "path", None)) == (kind, path)


def test_what_is_said_comes_before_what_is_guessed() -> None:
    said = recipe_of(["data.kind=video", "data=clips", "data.frames=9", "model.path=a/b", "output=mine"])
    assert (said.data.kind, said.data.path, said.data.size, said.output) == ("video", "clips", 512, "mine")
    said = recipe_of(["data={kind: folder, path: p, size: 64}", "model={path: org/b-1.5, train: lora}"])
    assert (said.data.size, said.model.train, said.output) == (64, "lora", "runs/b-1.5")
    assert recipe_of(["model=.", "data=p"]).output == f"runs/{Path.cwd().name}"


@pytest.mark.parametrize("command", ["train", "plan", "cache"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.steps=3"], "add model=PATH, .* and data=PATH, .*; or name the file of a recipe"),
        (["model=shapeworld-tiny"], "add data=PATH, a folder of pictures with captions; or"),
        (["data=pictures"], "add model=PATH, a diffusers folder, a hub id or shapeworld-tiny; or"),
        (["model=", "data=pictures"], "add model=PATH, a diffusers folder"),
        ([*TINY, "modl.train=lora"], "modl is not a recipe key .did you mean 'model'"),
        ([*TINY, "more"], "'more' is not an override: write key=value"),
        ([*TINY, "data.kind=movie"], "data.kind = 'movie'"),
        (["train.steps=3", "r.yaml"], "no recipe train.steps=3: the recipe comes first"),
        (["none=there.yaml/recipe", *TINY], "none is not a recipe key"),
        (["runs/lr=1/recipe.yaml"], "there is no recipe runs/lr=1/recipe.yaml"),
    ],
)
def test_what_is_missing_or_wrong_is_named(command: str, words: list[str], said: str) -> None:
    Path("r.yaml").touch()
    with pytest.raises(TwinflowError, match=said):
        run(command, *words)
    assert os.listdir() == ["r.yaml"]


def test_a_recipe_in_a_folder_with_an_equals_sign() -> None:
    file = Path("lr=1") / "recipe.yaml"
    file.parent.mkdir()
    file.write_text(
        "model: a/b\ndata: p\nobjective: {name: rcgm}\ntrain: {steps: 1, batch: 1}\noutput: runs/a\n"
    )
    assert recipe_of([file, "train.steps=7"]).train.steps == 7
