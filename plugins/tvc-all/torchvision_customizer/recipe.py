"""Models from YAML recipes."""

from __future__ import annotations

from tvc_core import Recipe, RecipeError, load_yaml_recipe

__all__ = ["Recipe", "RecipeError", "load_yaml_recipe"]
