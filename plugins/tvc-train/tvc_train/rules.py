"""Hold values that a program gives to the rules of a recipe's sections. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from tvc_core import did_you_mean, join_names, short_repr, what_there_is

__all__ = ["misfit", "wanted"]

_KINDS: dict[str, Any] = {
    "string": str, "boolean": bool, "integer": Integral, "number": Real, "object": Mapping,
    "array": (list, tuple), "null": type(None),
}  # fmt: skip


def misfit(value: Any, rule: Mapping[str, Any]) -> str:
    """Say why a value does not fit a rule; "" where it does.

    Args:
        value: of a program. A recipe's are held to the same rules by jsonschema, which knows their
            places in a file.
        rule: in one of the few forms of JSON Schema that the sections of tvc-train use.
    """
    if options := rule.get("anyOf", rule.get("oneOf")):
        whys = [misfit(value, each) for each in options]
        shown = short_repr(list(value) if isinstance(value, tuple) else value)
        return "" if "" in whys else f"{wanted(rule)}, not {shown}"
    if "const" in rule:
        return "" if value == rule["const"] else f"{wanted(rule)}, not {short_repr(value)}"
    if "enum" in rule:
        if isinstance(value, str) and value in rule["enum"]:
            return ""
        near = did_you_mean(str(value), rule["enum"])
        return f"one of {join_names(rule['enum'])}, not {short_repr(value)}.{near}"
    kind = rule["type"]
    fits = isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if fits and kind in ("integer", "number"):
        fits = rule.get("minimum", value) <= value <= rule.get("maximum", value)
        fits = fits and ("exclusiveMinimum" not in rule or value > rule["exclusiveMinimum"])
        fits = fits and ("exclusiveMaximum" not in rule or value < rule["exclusiveMaximum"])
        fits = fits and abs(value) != float("inf")  # NaN has failed above
    if fits and kind in ("string", "array"):
        count = len(value)
        least = rule.get("minLength", rule.get("minItems", 0))
        fits = least <= count <= rule.get("maxItems", count)
    if not fits:
        return f"{wanted(rule)}, not {short_repr(value)}"
    if kind == "array":
        whys = [why for item in value if (why := misfit(item, rule["items"]))]
        twice = next((item for i, item in enumerate(value) if item in value[:i]), None)
        if not whys and rule.get("uniqueItems") and twice is not None:
            whys = [f"{short_repr(twice)} is there twice"]
        return whys[0] if whys else ""
    if kind == "object":
        for name, item in value.items():
            if name not in rule["properties"]:
                keys = what_there_is(str(name), list(rule["properties"]), "The keys are")
                return f"unknown key {short_repr(name)}.{keys}"
            if why := misfit(item, rule["properties"][name]):
                return f"{name}: {why}"
    return ""


def wanted(rule: Mapping[str, Any]) -> str:
    """Say what fits a rule."""
    if options := rule.get("anyOf", rule.get("oneOf")):
        return " or ".join(wanted(each) for each in options)
    if "const" in rule:
        return short_repr(rule["const"])
    if "enum" in rule:
        return f"one of {join_names(rule['enum'])}"
    names = {"string": "text", "boolean": "true or false", "object": "keys and values"}
    names |= {"integer": "a whole number", "number": "a number", "null": "None"}
    if rule["type"] == "array":
        least, most = rule.get("minItems", 0), rule.get("maxItems")
        count = f"{least} " if least == most else f"at most {most} " if most else ""
        items = wanted(rule["items"]).replace("a whole number", "whole numbers")
        items = items.replace("a number", "numbers")
        return f"a list of {count}{items}"
    said = names[rule["type"]]
    bounds = {"minimum": "of at least", "exclusiveMinimum": "above"}
    bounds |= {"maximum": "at most", "exclusiveMaximum": "below"}
    return f"{said} " + " and ".join(
        f"{word} {rule[name]}" for name, word in bounds.items() if name in rule
    ) if any(name in rule for name in bounds) else said  # fmt: skip
