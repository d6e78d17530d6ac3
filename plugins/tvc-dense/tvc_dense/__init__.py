"""Backbones for torchvision's detectors and segmenters. Importing it imports no torch; using a name
does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import (
        DetectionBackbone,
        SegmentationBackbone,
        as_detection_backbone,
        as_segmentation_backbone,
    )

__all__ = [
    "DetectionBackbone",
    "SegmentationBackbone",
    "as_detection_backbone",
    "as_segmentation_backbone",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".backbones", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
