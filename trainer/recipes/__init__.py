"""Recipes: functions that return complete settings for the stages, by name; one file for each family of models."""

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.recipes.nano import NANO_RECIPES, Recipe
from roboalign.trainer.recipes.qwen import QWEN_RECIPES
from roboalign.trainer.recipes.smol import SMOL_RECIPES

__all__ = ["RECIPES", "Recipe", "recipe"]

RECIPES: dict[str, Recipe] = {r.name: r for r in (*NANO_RECIPES, *SMOL_RECIPES, *QWEN_RECIPES)}
"""Recipes by name."""


def recipe(name: str) -> Recipe:
    """Returns the recipe with this name; ConfigError lists the names when there is none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; choose one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
