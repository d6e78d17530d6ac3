"""See a hybrid of tvc: one page with every path, cost, patch and map. Importing this package
imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cam import ClassMap, GateMap, class_map, gate_maps
    from .comparing import Comparison, CostChange, Difference, compare_models
    from .costs import UncountedOp
    from .facts import ModelFacts, PartFacts, PatchFacts, PathFacts, inspect_model
    from .gate_log import GateLog, read_gate_log
    from .page import PageError
    from .writing import cam_picture, inspect_page

_HOMES = {
    "ClassMap": "cam", "Comparison": "comparing", "CostChange": "comparing",
    "Difference": "comparing", "GateLog": "gate_log", "GateMap": "cam", "ModelFacts": "facts",
    "PageError": "page", "PartFacts": "facts", "PatchFacts": "facts", "PathFacts": "facts",
    "UncountedOp": "costs", "cam_picture": "writing", "class_map": "cam",
    "compare_models": "comparing", "gate_maps": "cam", "inspect_model": "facts",
    "inspect_page": "writing", "read_gate_log": "gate_log",
}  # fmt: skip

__all__ = [
    "ClassMap", "Comparison", "CostChange", "Difference", "GateLog", "GateMap", "ModelFacts",
    "PageError", "PartFacts", "PatchFacts", "PathFacts", "UncountedOp", "cam_picture", "class_map",
    "compare_models", "gate_maps", "inspect_model", "inspect_page", "read_gate_log",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
