"""Typed training recipes: YAML in, one validated and frozen :class:`Recipe` out."""

from twinflow.recipes.load import load_recipe, make_recipe, recipe_dict, recipe_yaml
from twinflow.recipes.objective import OBJECTIVES, build_objective
from twinflow.recipes.sections import Recipe
from twinflow.recipes.typed import recipe_of

__all__ = [
    "OBJECTIVES",
    "Recipe",
    "build_objective",
    "load_recipe",
    "make_recipe",
    "recipe_dict",
    "recipe_of",
    "recipe_yaml",
]
