"""A JSON Schema of recipes, made from what is installed, by which editors complete and check."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from tvc_core import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    InitializerSpec,
    PatchOpSpec,
    Recipe,
    Registry,
    UnknownNameError,
)

from .checking import OF_KIND, OTHER_NAMES
from .keys import fields_of, recipe_keys
from .signatures import MISSING, Parameter, block_parameters, parameters_of

__all__ = ["recipe_schema"]

DRAFT = "http://json-schema.org/draft-07/schema#"
"""What editors' YAML servers read without a setting."""

_TYPES = {
    "int": "integer", "float": "number", "str": "string", "bool": "boolean", "None": "null",
    "Mapping": "object", "dict": "object",
}  # fmt: skip
_MACRO = {"$ref": "#/definitions/macro"}
_PATH_PART = r"^(@.+|[^\s.\d-][^\s.-]*)$"
_OF_FILES = r"(/|\.(safetensors|pth|pt|ckpt|bin)$)"

_ARGUMENTS = inspect.signature(HybridBuilder.from_backbone).parameters
"""What may be given; a recipe keeps some of it in one form."""


def recipe_schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return a JSON Schema (draft 7) of the recipes that can be built with what is installed.

    Args:
        registry: whose names it has; by default what is installed.
    """
    registry = registry or Registry()
    keys = recipe_keys()
    top = {key: _of_key(entry) for key, entry in fields_of("").items()}
    top["requires"]["anyOf"].append({"type": "string"})
    top["version"]["anyOf"][0] = {"const": 1}
    freeze = _object({key: _of_rule(rule) for key, rule in _keys_of("freeze_backbone").items()})
    top["freeze_backbone"]["anyOf"] = [{"type": "boolean"}, freeze, _MACRO]
    head = {key: _of_key(entry) for key, entry in fields_of("head").items()}
    head["heads"]["anyOf"] = [_heads(), {"type": "null"}, _MACRO]
    properties: dict[str, Any] = {
        **{key: top.get(key, {}) for key in keys[""]},
        "backbone": _backbone(registry),
        "head": {"anyOf": [_object(head), {"type": "null"}, _MACRO], "description": "The head."},
    }
    for offer in _sections(registry):
        schema = _with_names(offer.spec.schema, registry)
        properties[offer.spec.name] = {"description": offer.spec.summary, **schema}
    macro = {"type": "string", "pattern": "^@", "description": "A macro."}
    return {
        "$schema": DRAFT,
        "title": "A recipe of tvc",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "anyOf": [{"required": ["backbone"]}, {"required": ["extends"]}],
        "definitions": {"macro": macro, "block": _block_names(registry), "patch": _patch(registry)},
    }


def _sections(registry: Registry) -> list[Any]:
    try:
        return registry.all("section")
    except UnknownNameError:  # in a registry without this plugin
        return []


def _with_names(schema: Any, registry: Registry) -> Any:
    """Return a section's schema with the names of a kind wherever it says that one is meant."""
    if isinstance(schema, list):
        return [_with_names(each, registry) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    ours = (OF_KIND, OTHER_NAMES)
    found = {k: _with_names(each, registry) for k, each in schema.items() if k not in ours}
    if isinstance(kind := schema.get(OF_KIND), str):
        offers: list[Any] = registry.all(kind)
        names = {*registry.names(kind), *(offer.qualified for offer in offers)}
        return {**found, "enum": sorted(names)} if names else {"not": {}}
    return found


def _object(properties: Mapping[str, Any], description: str = "") -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _named(names: Iterable[str], description: str = "") -> dict[str, Any]:
    """Return the schema of one of the names; of a macro as well."""
    listed = {"enum": sorted(names), "description": description}
    return {"anyOf": [listed, _MACRO]}


def _qualified(registry: Registry, kind: type[Any]) -> list[str]:
    offers = registry.all(kind)
    return [*registry.names(kind), *(offer.qualified for offer in offers)]


# -- keys of the core ------------------------------------------------------------------------------


def _of_key(entry: Any) -> dict[str, Any]:
    """Return the schema of a field of a recipe: from its type, and its rule's choices."""
    schema = _of_rule(entry.metadata["rule"], _type_of(entry))
    schema["description"] = f"{entry.name} {schema['description']}".strip()
    return schema


def _type_of(entry: Any) -> str:
    """Return the type that may be given: an argument's, which takes one stage for a list of them,
    say, or else what a recipe keeps.
    """
    named = entry.name in _ARGUMENTS and entry.name != "name"  # which is the backbone's there
    given = _ARGUMENTS[entry.name].annotation if named else entry.type
    return str(getattr(given, "__forward_arg__", given))


def _of_rule(rule: Any, type_: str = "") -> dict[str, Any]:
    """Return the schema of what a rule allows, or a macro.

    Args:
        rule: one of the core's; of a function only the type is known.
        type_: of the value, where the rule has no choices.
    """
    choices, says = list(getattr(rule, "choices", ())), getattr(rule, "says", "")
    none = [None] if "None" in type_ else []
    schema: dict[str, Any] = {"enum": [*choices, *none]} if choices else _of_type(type_)
    ends = {
        "minimum": re.search(r"(?:from|of at least) (\d[\d,]*)", says),
        "maximum": re.search(r" to (\d[\d,]*)$", says),
    }
    bounds = {name: int(found[1].replace(",", "")) for name, found in ends.items() if found}
    for part in [schema, *schema.get("anyOf", ())]:
        if part.get("type") == "integer":
            part.update(bounds)
        if part.get("type") == "array" and "different" in says:
            part |= {"uniqueItems": True, "minItems": 1}
    return {"anyOf": [*schema.pop("anyOf", [schema]), _MACRO], "description": says}


def _heads() -> dict[str, Any]:
    """Return the schema of several heads, each of which has keys of its own."""
    types = {k: _type_of(each).removesuffix(" | None") for k, each in fields_of("head").items()}
    one = _object({key: _of_rule(rule, types[key]) for key, rule in _keys_of("heads").items()})
    number = {"type": "integer", "minimum": 1}
    names = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    head = {"anyOf": [number, names, one, _MACRO]}
    return {"type": "object", "additionalProperties": head, "minProperties": 1}


def _of_type(written: str) -> dict[str, Any]:
    """Return the schema of a type as its source has it: "int | tuple[int | str, ...] | None"."""
    parts = _split(written, "|")
    schemas = [_of_one(part) for part in parts]
    schemas = [each for i, each in enumerate(schemas) if each not in schemas[:i]]
    if {} in schemas:
        return {}
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _of_one(written: str) -> dict[str, Any]:
    name, _, inside = written.partition("[")
    name = name.rpartition(".")[2]
    if name in ("tuple", "list", "Sequence", "Iterable"):
        items = _split(inside.removesuffix("]"), ",")
        return {"type": "array", "items": _of_type(items[0])}
    if name == "Literal":
        return {"enum": [each.strip("'\" ") for each in _split(inside.removesuffix("]"), ",")]}
    return {"type": _TYPES[name]} if name in _TYPES else {}


def _split(written: str, separator: str) -> list[str]:
    """Return the parts of a type between separators that are in no bracket."""
    parts, depth = [""], 0
    for character in written:
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip() not in ("", "...")]


# -- what is installed -----------------------------------------------------------------------------


def _backbone(registry: Registry) -> dict[str, Any]:
    offers = registry.all(BackboneSpec)
    names = _qualified(registry, BackboneSpec)
    families = registry.all(BackboneFamilySpec)
    patterns = [
        {"type": "string", "pattern": f"^({_literal(offer.owner)}:)?{_literal(offer.spec.name)}/"}
        for offer in families
    ]
    name = {"anyOf": [{"enum": sorted(set(names))}, *patterns, _MACRO]}
    properties = {key: _of_key(entry) for key, entry in fields_of("backbone").items()}
    properties["name"] = {**name, "description": "The name of a backbone."}
    patch = {"$ref": "#/definitions/patch"}
    steps = [
        patch,
        {"type": "array", "items": {"anyOf": [patch, _MACRO]}},
        _MACRO,
        {"type": "null"},
    ]
    targets = {"type": "object", "additionalProperties": {"anyOf": steps}}
    properties["patches"] = {
        "description": "What to change where.",
        "anyOf": [targets, _MACRO, {"type": "null"}],
    }
    every = {weights.name for offer in offers for weights in offer.spec.weights}
    properties["weights"] = _weights(every)
    properties["options"] = {"type": ["object", "null"], "description": "Of its own builder."}
    rules = [
        {
            "if": {"properties": {"name": {"enum": [offer.spec.name, offer.qualified]}}},
            "then": {
                "properties": {
                    "weights": _weights(weights.name for weights in offer.spec.weights),
                    "options": {
                        "properties": {key: {} for key in offer.spec.options},
                        "additionalProperties": False,
                    },
                }
            },
        }
        for offer in offers
    ]
    long = {**_object(properties, "The network."), "allOf": rules}
    return {"anyOf": [name, long], "description": "The network."}


def _literal(name: str) -> str:
    """Return the regular expression of a name in ECMA 262, which JSON Schema has: an escaped
    hyphen, as `re.escape` writes it, is an error there.
    """
    return re.escape(name).replace(r"\-", "-")


def _weights(names: Iterable[str]) -> dict[str, Any]:
    return {
        "description": "A pretrained set, DEFAULT, a file, or null for random weights.",
        "anyOf": [
            {"enum": ["DEFAULT", *sorted(names), None]},
            {"type": "string", "pattern": r"\.(DEFAULT|[A-Z0-9_]+)$"},
            {"type": "string", "pattern": _OF_FILES},
            _MACRO,
        ],
    }


def _block_names(registry: Registry) -> dict[str, Any]:
    return _named(set(_qualified(registry, BlockSpec)), "The name of a block.")


def _patch(registry: Registry) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    initializers = _named(set(_qualified(registry, InitializerSpec)), "How its weights start.")
    for offer in registry.all(PatchOpSpec):
        takes = parameters_of(offer.spec.factory, skip=2 if offer.spec.takes_block else 1) or {}
        options = {
            name: _of_parameter(takes[name]) if name in takes else {} for name in offer.spec.options
        }
        name = {"type": ["string", "null"], "pattern": _PATH_PART}
        keys: dict[str, Any] = {"name": name, **options}
        if offer.spec.takes_block:
            keys |= {
                "type": {"$ref": "#/definitions/block"},
                "params": {"type": ["object", "null"]},
                "init": {"anyOf": [initializers, {"type": "null"}]},
            }
        value = _object(keys, offer.spec.summary)
        if offer.spec.takes_block:
            value["required"] = ["type"]
            value["allOf"] = _parameters(registry)
        short = {"$ref": "#/definitions/block"} if offer.spec.takes_block else {"type": "null"}
        both = {"anyOf": [short, value], "description": offer.spec.summary}
        operations |= {offer.spec.name: both, offer.qualified: both}
    return {"type": "object", "properties": operations, "additionalProperties": False}


def _parameters(registry: Registry) -> list[dict[str, Any]]:
    """Return for each block what its `params` may be."""
    rules = []
    for offer in registry.all(BlockSpec):
        takes = block_parameters(offer.spec)
        if takes is None:
            continue
        params = _object({name: _of_parameter(each) for name, each in takes.items()})
        params["description"] = offer.spec.summary
        forms = [params, _MACRO, {"type": "null"}]
        then: dict[str, Any] = {"properties": {"params": {"anyOf": forms}}}
        if needed := [name for name, each in takes.items() if each.required]:
            params["required"] = needed
            then["required"] = ["params"]
            forms.pop()
        names = [offer.spec.name, offer.qualified]
        rules.append(
            {"if": {"properties": {"type": {"enum": names}}, "required": ["type"]}, "then": then}
        )
    return rules


def _of_parameter(parameter: Parameter) -> dict[str, Any]:
    schema = _of_type(parameter.annotation) if parameter.annotation else {}
    plain = parameter.default is not MISSING and parameter.default is not None
    default = {"default": parameter.default} if plain else {}
    return {**({"anyOf": [schema, _MACRO]} if schema else {}), **default}


def _keys_of(name: str) -> Mapping[str, Any]:
    """Return the keys of a value that is a mapping, with their rules."""
    found: Mapping[str, Any] = next(e.metadata["keys"] for e in fields(Recipe) if e.name == name)
    return found
