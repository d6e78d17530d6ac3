"""The section `tune` as a JSON Schema. Light: imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["DOMAINS", "TUNE"]

_VALUE = {"type": ["string", "number", "boolean", "null"]}
_PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_INTEGERS = {**_PAIR, "items": {"type": "integer"}}
_STEPPED = {**_PAIR, "minItems": 3, "maxItems": 3}

DOMAINS: dict[str, dict[str, Any]] = {
    "choice": {"type": "array", "items": _VALUE, "minItems": 1},
    "uniform": _PAIR,
    "loguniform": _PAIR,
    "quniform": _STEPPED,
    "randint": _INTEGERS,
    "lograndint": _INTEGERS,
}
"""What a value is drawn from, with Ray Tune's names and arguments."""

_DOMAIN = {
    "type": "object",
    "properties": DOMAINS,
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}

TUNE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "space": {"type": "object", "additionalProperties": _DOMAIN, "minProperties": 1},
        "trials": {"type": "integer", "minimum": 1, "maximum": 100_000},
        "by": {"enum": ["accuracy", "balanced_accuracy", "f1", "average_precision", "loss"]},
        "search": {"enum": ["tpe", "random"]},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        "concurrent": {"type": "integer", "minimum": 1, "maximum": 1024},
    },
    "additionalProperties": False,
}
