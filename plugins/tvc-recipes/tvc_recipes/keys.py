"""The keys of a recipe, in the order in which they are written."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from tvc_core import Recipe

__all__ = ["LOCK", "fields_of", "recipe_keys"]

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
LOCK = {
    "type": "object",
    "properties": {
        "plugins": _TEXTS,
        "weights": {
            "type": "object",
            "properties": {"file": {"type": "string"}, "sha256": {"type": "string"}},
            "required": ["file", "sha256"],
            "additionalProperties": False,
        },
    },
    "required": ["plugins"],
    "additionalProperties": False,
}
"""The section `lock`, which `tvc lock` writes, as a JSON Schema."""


def fields_of(section: str) -> dict[str, Field[Any]]:
    """Return the fields of a recipe that a section of the YAML form has ("" is the top), by their
    keys there.
    """
    paths = {entry.metadata["path"]: entry for entry in fields(Recipe) if entry.metadata}
    return {path[-1]: entry for path, entry in paths.items() if "".join(path[:-1]) == section}


def recipe_keys() -> dict[str, list[str]]:
    """Return the keys of the top ("") and of each section, in order."""
    paths = [entry.metadata["path"] for entry in fields(Recipe) if entry.metadata]
    sections = list(dict.fromkeys(path[0] for path in paths if len(path) > 1))
    top = list(fields_of(""))
    place = top.index("freeze_backbone")
    top[place:place] = sections
    return {"": top, **{name: list(fields_of(name)) for name in sections}}
