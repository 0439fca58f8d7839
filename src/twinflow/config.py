"""Recipes, under the name that the rest of the library imports them by; see :mod:`twinflow.recipes`."""

from twinflow.recipes import (
    Recipe,
    build_objective,
    load_recipe,
    make_recipe,
    recipe_dict,
    recipe_of,
    recipe_yaml,
)

__all__ = [
    "Recipe",
    "build_objective",
    "load_recipe",
    "make_recipe",
    "recipe_dict",
    "recipe_of",
    "recipe_yaml",
]
