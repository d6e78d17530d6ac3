"""Fine-tune hybrids of tvc from one recipe, on one core or many machines. Importing this package
imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DataError, TrainingError
    from .evaluating import Evaluation, evaluate
    from .fitting import fit
    from .kinds import MethodSpec
    from .methods import Method
    from .phases import Phase, PhaseSchedule
    from .runs import Run

__all__ = [
    "DataError", "Evaluation", "Method", "MethodSpec", "Phase", "PhaseSchedule", "Run",
    "TrainingError", "evaluate", "fit",
]  # fmt: skip

_HOMES = {
    "DataError": "errors", "Evaluation": "evaluating", "Method": "methods", "MethodSpec": "kinds",
    "Phase": "phases", "PhaseSchedule": "phases", "Run": "runs", "TrainingError": "errors",
    "evaluate": "evaluating", "fit": "fitting",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
