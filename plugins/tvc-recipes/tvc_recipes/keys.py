"""The keys of a recipe, in the order in which they are written."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from tvc_core import Recipe

__all__ = ["fields_of", "recipe_keys"]


def fields_of(section: str) -> dict[str, Field[Any]]:
    """Return the fields of a recipe that a section of the YAML form has ("" is the top), by their
    keys there.
    """
    found = [entry for entry in fields(Recipe) if entry.metadata]
    return {
        entry.metadata["written"] or entry.name: entry
        for entry in found
        if entry.metadata["section"] == section
    }


def recipe_keys() -> dict[str, list[str]]:
    """Return the keys of the top ("") and of each section, in order."""
    sections = [entry.metadata["section"] for entry in fields(Recipe) if entry.metadata]
    top = list(fields_of(""))
    place = top.index("freeze_backbone")
    top[place:place] = [name for name in dict.fromkeys(sections) if name]
    return {"": top, **{name: list(fields_of(name)) for name in dict.fromkeys(sections) if name}}
