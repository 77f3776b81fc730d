"""Recipes: functions that return complete settings for the stages, by name."""

from roboalign.trainer.recipes.nano import RECIPES, Recipe, recipe

__all__ = ["RECIPES", "Recipe", "recipe"]
