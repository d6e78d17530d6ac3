"""From what the user wrote to a plan with every name bound. Imports no torch."""

from __future__ import annotations

from ..written.place import Place
from .document import RecipeDocument
from .plan import REACHING, PatchPlan, Plan, make_plan, qualified_entry
from .schema import PatchEntry, Patches, Recipe, Weights, key_path, load_recipe, parse

__all__ = [
    "REACHING", "PatchEntry", "PatchPlan", "Patches", "Place", "Plan", "Recipe",
    "RecipeDocument", "Weights", "key_path", "load_recipe", "make_plan", "parse", "qualified_entry",
]  # fmt: skip
