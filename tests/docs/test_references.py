"""Every name that the documentation gives to code exists, and every page of it is found from another."""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
# Names in text and in blocks of equations, not paths or addresses.
NAME = re.compile(r"(?<![\w./:@-])twinflow(?!\.json\b)(?:\.[A-Za-z_]\w*)+(?![\w/])")


def resolve(name: str) -> object:
    """The module, class, function, method or field of a dataclass that a dotted name is."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if part in getattr(found, "__dataclass_fields__", {}):
                found = found.__dataclass_fields__[part]
            else:
                found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_code_exist(page):
    missing = []
    for name in sorted(set(NAME.findall(page.read_text(encoding="utf-8")))):
        try:
            resolve(name)
        except (AttributeError, ModuleNotFoundError):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_exist(page):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_recipe_is_in_the_guide():
    guide = (ROOT / "docs/guides/recipes.md").read_text(encoding="utf-8")
    recipes = {recipe.name for recipe in (ROOT / "recipes").glob("*.yaml")}
    assert recipes
    assert recipes == set(re.findall(r"\b((?:shapeworld|digits|lab)\w*\.yaml)", guide))


def test_every_displayed_equation_of_the_method_names_its_function():
    """Beside it or below it; one between dollars, where no code can stand, in the sentence that leads to it."""
    paragraphs = (ROOT / "docs/method.md").read_text(encoding="utf-8").split("\n\n")
    named = {}
    for before, paragraph in pairwise(paragraphs):
        lines = paragraph.splitlines()
        if lines[0] == "$$":
            named[paragraph] = NAME.findall(before)
        elif all(line.startswith("    ") for line in lines):
            named[paragraph] = NAME.findall(lines[-1])
    assert sum("(eq" in paragraph for paragraph in named) == 6
    assert [paragraph for paragraph, names in named.items() if not names] == []
