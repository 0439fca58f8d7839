"""The page of recipes names every key of every section; what a kind of data has besides may be on the page of data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from twinflow.recipes.load import DATA_KINDS
from twinflow.recipes.sections import Recipe

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGE = (GUIDES / "recipes.md").read_text(encoding="utf-8")
CELLS = [
    re.findall(r"`([\w.]+)`", line.split("|")[1]) for line in PAGE.splitlines() if line.startswith("| `")
]
# `optimizer.name`, `lr`: the others of a cell are of the section that its first key names.
NAMED = {cell[0] for cell in CELLS if cell} | {
    f"{cell[0].rpartition('.')[0]}.{key}" for cell in CELLS for key in cell[1:]
}


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, info in section.model_fields.items():
        hint = info.annotation
        inner = isinstance(hint, type) and issubclass(hint, BaseModel)
        found += keys(hint, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return found


def test_every_key_of_a_recipe_is_on_its_page() -> None:
    wanted = set(keys(Recipe)) - {"data", "objective", "output"}  # which have text of their own
    assert wanted - NAMED == set()
    assert "`output`" in PAGE


@pytest.mark.parametrize("kind", DATA_KINDS)
def test_every_key_of_data_is_on_a_page(kind: str) -> None:
    text = PAGE + (GUIDES / "data.md").read_text(encoding="utf-8")
    missing = [key for key in keys(DATA_KINDS[kind]) if not re.search(rf"\b{key.rpartition('.')[2]}\b", text)]
    assert missing == []
