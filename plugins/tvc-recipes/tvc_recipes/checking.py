"""Everything that is wrong with a recipe at once, and data against a schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from tvc_core import (
    BlockSpec,
    HybridBuilder,
    Recipe,
    RecipeDocument,
    RecipeError,
    Registry,
    TvcError,
)

from .signatures import parameters_of

__all__ = ["check_data", "check_recipe"]

MAX_ERRORS = 50
_KEYS = ("type", "params", "init", "name")


def check_recipe(
    recipe: str | Path | IO[bytes],
    *,
    changes: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> list[TvcError]:
    """Return everything that is wrong with a recipe, as far as that can be known without torch:
    keys, values, names, and names of parameters. At most 50 errors.

    Args:
        recipe: a YAML file, or one that is open.
        changes: as `tvc_core.load_recipe` takes them.
        registry: where names are looked up; by default what is installed.
    """
    # The core stops at the first error, whose place it says. So what stands there is taken out, and
    # the rest is looked at again: every error has the core's own words, and there is no second set
    # of rules. It ends where nothing can be taken out, such as a key that is missing.
    registry = registry or Registry()
    found: list[TvcError] = []
    try:
        document = RecipeDocument.read(recipe)
    except RecipeError as error:
        return [error]
    while len(found) < MAX_ERRORS:
        try:
            read = Recipe.from_document(document, changes=changes, registry=registry)
            HybridBuilder(registry=registry).resolve(read)
        except TvcError as error:
            if str(error) not in map(str, found):
                found.append(error)
            smaller = None if not error.path else _without(document.data, error.path)
            if smaller is None or smaller == document.data:
                return found
            document = replace(document, data=smaller)
        else:
            found += _unknown_parameters(read, registry)
            return found
    return found


def _without(data: Any, path: tuple[Any, ...]) -> Any:
    """Return data without what stands at a path, or the nearest thing above it; None where nothing
    that may go is left.
    """
    if path in (("backbone",), ("backbone", "name")) or not path:
        return None
    key, rest = path[0], path[1:]
    if isinstance(data, Mapping) and key in data:
        smaller = _without(data[key], rest) if rest else None
        if smaller is None and rest and path[:2] == ("backbone", "name"):
            return None
        if smaller is not None and (smaller or key == "backbone"):
            return {**data, key: smaller}
        return {name: value for name, value in data.items() if name != key}
    if isinstance(data, list) and isinstance(key, int) and key < len(data):
        smaller = _without(data[key], rest) if rest else None
        return [*data[:key], *([smaller] if smaller else []), *data[key + 1 :]]
    return None


def _unknown_parameters(recipe: Recipe, registry: Registry) -> list[TvcError]:
    """Return an error for each parameter that a block does not take, by its source."""
    found: list[TvcError] = []
    for entry in recipe.patches:
        if not isinstance(entry.block, str) or not entry.params:
            continue
        block = registry.resolve(BlockSpec, entry.block)
        takes = parameters_of(block.spec.factory, skip=1)
        for name in entry.params if takes is not None else ():
            if takes is None or name in takes:
                continue
            near = get_close_matches(name, takes, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            said = f"block {block.qualified!r}: unknown parameter {name!r}.{hint} It takes: "
            place = entry.where.down("params", name).key
            found.append(place.error(f"{said}{', '.join(takes) or 'none'}."))
    return found


# -- sections --------------------------------------------------------------------------------------


def check_data(data: Any, schema: Mapping[str, Any], place: Any) -> None:
    """Hold data against a JSON Schema.

    Args:
        data: plain data.
        schema: of draft 2020-12.
        place: where the data stands.

    Raises:
        RecipeError: it is something else; the message says where.
    """
    if not schema:
        return
    from jsonschema import Draft202012Validator  # takes longer than all the rest

    errors = sorted(Draft202012Validator(schema).iter_errors(data), key=lambda e: list(e.path))
    for error in errors[:1]:
        at = place
        for key in error.absolute_path:
            at = at / key
        known = list(error.schema.get("properties", {})) if isinstance(error.schema, dict) else []
        if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
            name = next((key for key in error.instance if key not in known), "")
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            keys = ", ".join(known) or "none"
            raise (at / name).key.error(
                f"unknown key {str(name)[:80]!r}.{hint} The keys are {keys}"
            )
        raise at.error(_said(error))


def _said(error: Any) -> str:
    value, shown = error.validator_value, repr(error.instance)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    wanted = {
        "type": "of the type", "enum": "one of", "const": "exactly", "minimum": "at least",
        "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below",
    }  # fmt: skip
    if error.validator == "required":
        missing = [key for key in value if key not in error.instance]
        return f"the key {missing[0]!r} is missing"
    if error.validator in wanted:
        listed = value if isinstance(value, list) else [value]
        return f"has to be {wanted[error.validator]} {', '.join(map(str, listed))}, not {shown}"
    return f"{shown} does not fit: {error.validator} is {str(value)[:200]}"
