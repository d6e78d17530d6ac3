"""From what the user wrote to a plan with every name bound. Imports no torch."""

from __future__ import annotations

from ..written.place import Place
from .document import RecipeDocument
from .plan import REACHING, PatchPlan, Plan, make_plan, qualified_entry
from .schema import KEY_PATHS, PatchEntry, Patches, Recipe, Weights, load_recipe

__all__ = [
    "KEY_PATHS", "REACHING", "PatchEntry", "PatchPlan", "Patches", "Place", "Plan", "Recipe",
    "RecipeDocument", "Weights", "load_recipe", "make_plan", "qualified_entry",
]  # fmt: skip
