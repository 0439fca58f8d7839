"""The page of recipes for published models: its table is what was planned, all of it fits, its changes are possible."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from twinflow.config import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("model_recipes")


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
