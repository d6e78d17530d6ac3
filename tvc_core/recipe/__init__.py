"""From what the user wrote to a plan with every name bound. Imports no torch."""

from __future__ import annotations

from .plan import PatchPlan, Plan, make_plan, qualified_entry
from .schema import PatchEntry, Recipe, load_recipe, make_recipe

__all__ = [
    "PatchEntry",
    "PatchPlan",
    "Plan",
    "Recipe",
    "load_recipe",
    "make_plan",
    "make_recipe",
    "qualified_entry",
]
