"""Images and what they show: where they come from, how they are prepared, in which order they
come. Importing this package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batches import (
        Batch,
        check_shares,
        class_weights,
        evaluation_batches,
        steps_in_epoch,
        training_batches,
    )
    from .images import read_image
    from .inspecting import DataReport, inspect_data
    from .opening import Data, open_data, open_files, open_labeled
    from .preparing import Transforms, preprocessing_for
    from .problems import Problem
    from .samples import Samples
    from .settings import DataSettings
    from .shards import write_shards

__all__ = [
    "Batch", "Data", "DataReport", "DataSettings", "Problem", "Samples", "Transforms",
    "check_shares", "class_weights", "evaluation_batches", "inspect_data", "open_data",
    "open_files", "open_labeled", "preprocessing_for", "read_image", "steps_in_epoch",
    "training_batches", "write_shards",
]  # fmt: skip

_HOMES = {
    "Batch": "batches", "Data": "opening", "DataReport": "inspecting", "DataSettings": "settings",
    "Problem": "problems", "Samples": "samples", "preprocessing_for": "preparing",
    "Transforms": "preparing", "check_shares": "batches", "class_weights": "batches",
    "evaluation_batches": "batches",
    "inspect_data": "inspecting", "open_data": "opening", "open_files": "opening",
    "open_labeled": "opening", "read_image": "images", "steps_in_epoch": "batches",
    "training_batches": "batches", "write_shards": "shards",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
