"""The page of recipes for published models: its table is what was planned, all of it fits, its changes are possible."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from twinflow.config import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("model_recipes", ROOT / "benchmarks" / "model_recipes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_page_shows_the_plans_and_all_fit(script: Any) -> None:
    rows = json.loads(script.RESULTS.read_text())["recipes"]
    assert script.table(rows) in script.DOCS.read_text()
    assert sorted(rows) == sorted(path.stem for path in script.RECIPES.glob("*.yaml"))
    for name, row in rows.items():
        recipe = load_recipe(script.RECIPES / f"{name}.yaml")
        assert row["fits"], name
        assert (row["batch"], row["accumulate"]) == (recipe.train.batch, recipe.train.accumulate), name
        assert (row["steps"], row["gpus"]) == (recipe.train.steps, script.PLACES[name].gpus), name
        sides = recipe.data.size if isinstance(recipe.data.size, tuple) else (recipe.data.size,) * 2
        assert (row["height"], row["width"]) == sides, name
        assert row["frames"] == getattr(recipe.data, "frames", row["frames"]), name


def test_its_changes_are_possible(script: Any) -> None:
    lines = [line for line in script.DOCS.read_text().splitlines() if line.startswith("| ") and "=" in line]
    changes = [group.split() for line in lines for group in re.findall(r"`([\w.]+=[^`]*)`", line)]
    assert len(changes) >= 4
    for change in changes:
        load_recipe(script.RECIPES / "qwen_image_lora.yaml", change)
