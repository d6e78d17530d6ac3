"""Recipes of tvc that extend each other, are checked, locked, compared and formatted. Importing
this package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checking import check_recipe
    from .comparing import Difference, compare
    from .formatting import format_recipe
    from .kinds import SectionSpec, TemplateSpec
    from .locking import lock_recipe
    from .schema import recipe_schema

__all__ = [
    "Difference", "SectionSpec", "TemplateSpec", "check_recipe", "compare", "format_recipe",
    "lock_recipe", "recipe_schema",
]  # fmt: skip

_HOMES = {
    "Difference": "comparing", "SectionSpec": "kinds", "TemplateSpec": "kinds",
    "check_recipe": "checking", "compare": "comparing", "format_recipe": "formatting",
    "lock_recipe": "locking", "recipe_schema": "schema",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
