"""A JSON Schema of recipes, made from what is installed, by which editors complete and check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tvc_core import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    Registry,
    UnknownNameError,
)

from .keys import fields_of, recipe_keys
from .signatures import MISSING, Parameter, parameters_of

__all__ = ["recipe_schema"]

DRAFT = "http://json-schema.org/draft-07/schema#"
"""What editors' YAML servers read without a setting."""

_TYPES = {
    "int": "integer", "float": "number", "str": "string", "bool": "boolean", "None": "null",
    "Mapping": "object", "dict": "object",
}  # fmt: skip
_OF_FILES = r"(/|\.(safetensors|pth|pt|ckpt|bin)$)"


def recipe_schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return a JSON Schema (draft 7) of the recipes that can be built with what is installed.

    Args:
        registry: whose names it has; by default what is installed.
    """
    registry = registry or Registry()
    keys = recipe_keys()
    top = {key: _of_key(entry) for key, entry in fields_of("").items()}
    top["version"] = {"const": 1, "description": top["version"]["description"]}
    head = {key: _of_key(entry) for key, entry in fields_of("head").items()}
    properties: dict[str, Any] = {
        **{key: top.get(key, {}) for key in keys[""]},
        "backbone": _backbone(registry),
        "head": _object(head, "What the network ends with."),
    }
    for offer in _sections(registry):
        properties[offer.spec.name] = {"description": offer.spec.summary, **offer.spec.schema}
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
    return {"anyOf": [listed, {"$ref": "#/definitions/macro"}]}


def _qualified(registry: Registry, kind: type[Any]) -> list[str]:
    offers = registry.all(kind)
    return [*registry.names(kind), *(offer.qualified for offer in offers)]


# -- keys of the core ------------------------------------------------------------------------------


def _of_key(entry: Any) -> dict[str, Any]:
    """Return the schema of a field of a recipe: from its type, and its rule's choices."""
    rule = entry.metadata["rule"]
    choices = list(getattr(rule, "choices", ()))
    schema: dict[str, Any] = {"enum": [*choices, None]} if choices else _of_type(str(entry.type))
    says = getattr(rule, "says", "")
    schema["description"] = f"{entry.name} {says}".strip() if says else entry.name
    found = re.search(r"from (\d[\d,]*)(?: \(.*?\))? to (\d[\d,]*)", says)
    if found and "integer" in str(schema):
        least, most = (int(number.replace(",", "")) for number in found.groups())
        for part in [schema, *schema.get("anyOf", ())]:
            if part.get("type") == "integer":
                part.update(minimum=least, maximum=most)
    return schema


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
        {"type": "string", "pattern": f"^({re.escape(offer.owner)}:)?{re.escape(offer.spec.name)}/"}
        for offer in families
    ]
    macro = {"$ref": "#/definitions/macro"}
    name = {"anyOf": [{"enum": sorted(set(names))}, *patterns, macro]}
    properties = {key: _of_key(entry) for key, entry in fields_of("backbone").items()}
    properties["name"] = {**name, "description": "The name of a backbone."}
    properties["patches"] = {
        "description": "What to change where.",
        "type": "object",
        "additionalProperties": {
            "anyOf": [
                {"$ref": "#/definitions/patch"},
                {"type": "array", "items": {"$ref": "#/definitions/patch"}},
                macro,
                {"type": "null"},
            ]
        },
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
                        "properties": {option: {} for option in offer.spec.options},
                        "additionalProperties": False,
                    },
                }
            },
        }
        for offer in offers
    ]
    long = {**_object(properties, "The network."), "allOf": rules}
    return {"anyOf": [name, long], "description": "The network."}


def _weights(names: Iterable[str]) -> dict[str, Any]:
    return {
        "description": "A pretrained set, DEFAULT, a file, or null for random weights.",
        "anyOf": [
            {"enum": ["DEFAULT", *sorted(names), None]},
            {"type": "string", "pattern": r"\.(DEFAULT|[A-Z0-9_]+)$"},
            {"type": "string", "pattern": _OF_FILES},
            {"$ref": "#/definitions/macro"},
        ],
    }


def _block_names(registry: Registry) -> dict[str, Any]:
    return _named(set(_qualified(registry, BlockSpec)), "The name of a block.")


def _patch(registry: Registry) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    initializers = _named(set(_qualified(registry, InitializerSpec)), "How its weights start.")
    for offer in registry.all(PatchOpSpec):
        options = {
            name: {"default": default} if default is not None else {}
            for name, default in offer.spec.options.items()
        }
        keys: dict[str, Any] = {"name": {"type": "string"}, **options}
        if offer.spec.takes_block:
            keys |= {
                "type": {"$ref": "#/definitions/block"},
                "params": {"type": "object"},
                "init": initializers,
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
        takes = parameters_of(offer.spec.factory, skip=1)
        if takes is not None:
            params = {name: _of_parameter(each) for name, each in takes.items()}
            rules.append(
                {
                    "if": {"properties": {"type": {"enum": [offer.spec.name, offer.qualified]}}},
                    "then": {"properties": {"params": _object(params, offer.spec.summary)}},
                }
            )
    return rules


def _of_parameter(parameter: Parameter) -> dict[str, Any]:
    schema = _of_type(parameter.annotation) if parameter.annotation else {}
    plain = parameter.default is not MISSING and parameter.default is not None
    default = {"default": parameter.default} if plain else {}
    alternatives = [schema, {"$ref": "#/definitions/macro"}] if schema else []
    return {**({"anyOf": alternatives} if alternatives else {}), **default}
