"""Everything that is wrong with a recipe at once, and data against a schema."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tvc_core import (
    BlockSpec,
    HybridBuilder,
    PatchOpSpec,
    Recipe,
    RecipeDocument,
    RecipeError,
    Registry,
    TvcError,
    did_you_mean,
    foreign,
    join_names,
    on_value,
    short_repr,
    what_there_is,
)

from .signatures import Parameter, block_parameters, parameters_of

__all__ = ["OF_KIND", "OTHER_NAMES", "check_data", "check_recipe"]

MAX_ERRORS = 50

OF_KIND = "x-tvc-kind"
"""In the schema of a section: the value is the name of something of this kind."""

OTHER_NAMES = "x-tvc-other-names"
"""In the schema of keys with values: what others call such a key, and what that is here."""


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
    registry = registry or Registry()
    try:
        document = Recipe.changed_document(RecipeDocument.read(recipe), changes or {}, registry)
        document = document.expanded(registry)
    except RecipeError as error:
        return [error]
    found, read = _wrong(document, registry)
    for section, data in read.sections.items() if read is not None and not found else ():
        offer: Any = registry.resolve("section", section)
        place = document.place / section
        try:
            with place.before_errors(), foreign(RecipeError, f"{offer.qualified} fails"):
                variants = offer.load("variants")(data) if offer.spec.variants else ()
            for each in variants:
                variant = Recipe.changed_document(document, each, registry)
                found += _wrong(variant, registry)[0]
        except TvcError as error:
            found.append(error)
    return list({str(error): error for error in found}.values())[:MAX_ERRORS]


def _wrong(document: RecipeDocument, registry: Registry) -> tuple[list[TvcError], Recipe | None]:
    """Return everything that is wrong with a recipe, and the recipe without what is, if there can
    be one.
    """
    # The core stops at the first error, whose place it says. So what stands there is taken out, and
    # the rest is looked at again: every error has the core's own words, and there is no second set
    # of rules. It ends where nothing can be taken out, such as a key that is missing.
    found: list[TvcError] = []
    out: list[tuple[Any, ...]] = []
    while len(found) < MAX_ERRORS:
        try:
            read = Recipe.from_document(document, registry=registry)
            HybridBuilder(registry=registry).resolve(read)
        except TvcError as error:
            at = tuple(error.path or ())
            # of a key that is missing only since it was taken out
            again = any(
                path[:-1] == at and f"key {path[-1]!r} is missing" in str(error) for path in out
            )
            if str(error) not in map(str, found) and not again:
                found.append(error)
            if again:  # now all of it is taken out, and the next item of a list stands there
                out = [path for path in out if path[:-1] != at]
            out.append(at)
            smaller = None if not error.path else _without(document.data, error.path)
            if smaller is None or smaller == document.data:
                return found, None
            document = replace(document, data=smaller)
        else:
            found += _wrong_parameters(read, registry)
            return [*found, *_wrong_names(read, registry)], read
    return found, None


def _without(data: Any, path: tuple[Any, ...]) -> Any:
    """Return data without what stands at a path, or the nearest thing above it; None where nothing
    that may go is left.
    """
    if path in (("backbone",), ("backbone", "name")) or not path:
        return None
    key, rest = path[0], path[1:]
    if isinstance(data, Mapping) and key in data:
        smaller = _without(data[key], rest) if rest else None
        if smaller is not None and (smaller or key == "backbone"):
            return {**data, key: smaller}
        return {name: value for name, value in data.items() if name != key}
    if isinstance(data, list) and isinstance(key, int) and key < len(data):
        smaller = _without(data[key], rest) if rest else None
        return [*data[:key], *([smaller] if smaller else []), *data[key + 1 :]]
    return None


def _wrong_parameters(recipe: Recipe, registry: Registry) -> list[TvcError]:
    """Return an error for each parameter of a block, and each option of an operation, that its
    factory does not take, needs, or takes in another form, by its source.
    """
    found: list[TvcError] = []
    for entry in recipe.patches:
        op = registry.resolve(PatchOpSpec, entry.op)
        takes = parameters_of(op.spec.factory, skip=2 if op.spec.takes_block else 1) or {}
        for name in entry.options:
            if problem := _misfit(takes, name, entry.options[name]):
                found.append(entry.where.down(name).error(f"{op.qualified}: {problem}"))
        if isinstance(entry.block, str):
            block = registry.resolve(BlockSpec, entry.block)
            found += _wrong_params(entry, block, block_parameters(block.spec))
    return found


def _wrong_names(recipe: Recipe, registry: Registry) -> Iterator[TvcError]:
    """Yield an error for each name in a section that no plugin offers."""
    for section, data in recipe.sections.items():
        offer: Any = registry.resolve("section", section)
        for kind, name, path, is_key in _names_in(data, offer.spec.schema):
            place = recipe.where / section
            for key in path:
                place = place / key
            place = (place / name).key if is_key else place
            try:
                registry.resolve(kind, name)
            except TvcError as error:
                yield place.error(str(error))


def _names_in(data: Any, schema: Mapping[str, Any]) -> list[tuple[str, str, Any, bool]]:
    """Return each value of which a schema says that it is a name: its kind, itself, its path, and
    whether it is a key of what is there.
    """
    from jsonschema import ValidationError, validators

    def note(_: Any, kind: str, name: Any, __: Any) -> Iterator[Any]:
        yield ValidationError(kind)  # never that it is fine, so that every place is reached

    found = []
    pending = list(validators.extend(_validator(), {OF_KIND: note})(schema).iter_errors(data))
    while pending:
        error = pending.pop(0)
        pending += error.context
        if error.validator == OF_KIND and isinstance(error.instance, str):
            is_key = "propertyNames" in error.absolute_schema_path
            found.append((error.validator_value, error.instance, error.absolute_path, is_key))
    return found


def _wrong_params(entry: Any, block: Any, takes: Mapping[str, Parameter] | None) -> list[TvcError]:
    place, says = entry.where.down("params"), f"block {block.qualified!r}"
    if takes is None:
        return []
    found: list[TvcError] = []
    for name, value in entry.params.items():
        if name not in takes:
            problem = f"unknown parameter {short_repr(name)}.{what_there_is(name, takes)}"
            found.append(place.down(name).key.error(f"{says}: {problem}"))
        elif problem := _misfit(takes, name, value):
            found.append(place.down(name).error(f"{says}: {problem}"))
    needed = [name for name, each in takes.items() if each.required]
    if missing := [name for name in needed if name not in entry.params]:
        found.append(place.error(f"{says} needs the parameter {join_names(map(repr, missing))}"))
    return found


def _misfit(takes: Mapping[str, Parameter], name: str, value: Any) -> str:
    """Say why a value is none that a parameter takes."""
    if name not in takes or takes[name].fits(value):
        return ""
    choices = takes[name].choices
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    hint = hint or on_value(value, takes[name].fits)
    kind = f"one of {join_names(choices)}" if choices else takes[name].annotation
    return f"{name} is {kind}, not {short_repr(value)}.{hint}".rstrip(".")


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
    errors = list(_validator()(schema).iter_errors(data))
    errors.sort(key=lambda e: e.validator != "additionalProperties")  # misspelt, so missing
    for error in map(_inside, errors[:1]):
        at = place
        for key in error.absolute_path:
            at = at / key
        known = list(error.schema.get("properties", {})) if isinstance(error.schema, dict) else []
        if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
            name = next((key for key in error.instance if key not in known), "")
            here = ".".join(str(key) for key in error.absolute_path if not isinstance(key, int))
            hint = _elsewhere(name, here, schema, str(place.path[-1]))
            keys = what_there_is("" if hint else str(name), known, "The keys are")
            raise (at / name).key.error(f"unknown key {short_repr(name)}.{hint}{keys}")
        raise at.error(_said(error))


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators  # takes longer than all the rest

    # to JSON Schema .nan and .inf are numbers, which no bound refuses, and 1.0 is a whole one, with
    # which nothing can be counted
    types = Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number)
    types = types.redefine("integer", _is_whole)
    return validators.extend(Draft202012Validator, type_checker=types)


def _is_number(checker: Any, value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else _is_whole(checker, value)


def _is_whole(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _elsewhere(name: Any, here: str, schema: Mapping[str, Any], section: str) -> str:
    """Say where an unknown key belongs, and what it is called here where others call it so."""
    found = sorted({(meant, path) for key, path, meant in _keys(schema) if key == name})
    for meant, path in found:
        if meant:
            where = "" if path == here else f", a key of {path or section}"
            return f" Here that is {meant}{where}."
    parts = [path or section for _, path in found]
    return f" It is a key of {' or '.join(parts)}." if parts else ""


def _keys(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the keys that a schema knows, or knows by other names, each with the path of what it
    stands in, and of another name what it means.
    """
    for other, meant in schema.get(OTHER_NAMES, {}).items():
        yield other, path, meant
    for key, each in schema.get("properties", {}).items():
        yield key, path, ""
        yield from _keys(each, f"{path}.{key}" if path else key)
    for form in (schema.get("items"), *schema.get("anyOf", ())):
        if isinstance(form, Mapping):
            yield from _keys(form, path)


def _inside(error: Any) -> Any:
    """Return what is wrong inside of a value, with its keys, or with how many it is, where it is of
    one of several forms in all else.
    """
    if error.validator not in ("oneOf", "anyOf"):
        return error
    here = len(error.absolute_path)
    inner = map(_inside, error.context)
    found = [e for e in inner if len(e.absolute_path) > here or e.validator in _ON_ITSELF]
    return max(found, key=lambda each: len(each.absolute_path), default=error)


_COUNTS = (
    "minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength",
    "uniqueItems",
)  # fmt: skip
_ON_ITSELF = (*_COUNTS, "additionalProperties", "required")
"""What a schema says of a value itself, not of its kind: how many it holds, and its keys."""


def _said(error: Any) -> str:
    value, shown, what = error.validator_value, short_repr(error.instance), error.validator
    if what == "required":
        missing = [key for key in value if key not in error.instance]
        return f"the key {missing[0]!r} is missing"
    if what == "uniqueItems":
        return f"the same is there twice: {shown}"
    if what in _COUNTS:
        of = {"I": "items", "P": "keys", "L": "characters"}[what[3]]
        least = "at least" if what.startswith("min") else "at most"
        return f"has to have {least} {value} {of}, not {len(error.instance)}: {shown}"
    near = did_you_mean(str(error.instance), list(_choices(error.schema)))
    near = near or on_value(error.instance, _validator()(error.schema).is_valid)
    return f"has to be {wanted_by(error.schema)}, not {shown}.{near}"


def _choices(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts that a schema lists, in whatever form it takes them."""
    listed = [*schema.get("enum", ()), schema.get("const")]
    yield from (each for each in listed if isinstance(each, str))
    for form in ("oneOf", "anyOf"):
        for each in schema.get(form, ()):
            yield from _choices(each)


_TYPES = {
    "string": "text", "integer": "a whole number", "number": "a number", "array": "a list",
    "boolean": "true or false", "object": "keys with values", "null": "null",
}  # fmt: skip
_BOUNDS = {
    "minimum": "of at least", "exclusiveMinimum": "above", "maximum": "of at most",
    "exclusiveMaximum": "below",
}  # fmt: skip


def wanted_by(schema: Mapping[str, Any]) -> str:
    """Return what a value has to be, in words.

    Args:
        schema: of JSON Schema, with "type", bounds, "enum", "const", "oneOf" or "anyOf".
    """
    for form in ("oneOf", "anyOf"):
        if form in schema:
            return " or ".join(wanted_by(each) for each in schema[form])
    if "enum" in schema:
        return f"one of {join_names(list(map(str, schema['enum'])))}"
    if "const" in schema:
        return repr(schema["const"])
    types = schema.get("type", [])
    said = " or ".join(_TYPES[each] for each in ([types] if isinstance(types, str) else types))
    if {"minimum", "maximum"} <= schema.keys():
        return f"{said} from {schema['minimum']} to {schema['maximum']}"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([said or "something else", " and ".join(bounds)]).strip()
