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
    from .judging import Judged, judge
    from .kinds import MethodSpec
    from .method import Method, Training
    from .phases import Phase, PhaseSchedule
    from .predicting import Prediction, find_files, predict
    from .runs import Run
    from .soups import Soup, average
    from .trained import Trained
    from .trainer import phase_callback
    from .tuning.searching import Tuned, tune
    from .tuning.settings import TuneSettings

__all__ = [
    # training
    "DataError", "Evaluation", "Method", "MethodSpec", "Phase", "PhaseSchedule", "Run",
    "Training", "TrainingError", "evaluate", "fit", "phase_callback",
    # what comes after it
    "Judged", "Prediction", "Soup", "Trained", "TuneSettings", "Tuned", "average", "find_files",
    "judge", "predict", "tune",
]  # fmt: skip

_HOMES = {
    "DataError": "errors", "Evaluation": "evaluating", "Judged": "judging", "Method": "method",
    "MethodSpec": "kinds", "Phase": "phases", "PhaseSchedule": "phases",
    "Prediction": "predicting", "Run": "runs", "Soup": "soups", "Trained": "trained",
    "Training": "method", "TrainingError": "errors", "TuneSettings": "tuning.settings",
    "Tuned": "tuning.searching", "average": "soups", "evaluate": "evaluating",
    "find_files": "predicting", "fit": "fitting", "judge": "judging", "phase_callback": "trainer",
    "predict": "predicting", "tune": "tuning.searching",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
