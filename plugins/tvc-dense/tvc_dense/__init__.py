"""Hybrids for detection and segmentation: backbones of torchvision's detectors and segmenters,
encoders of a U-Net and of segmentation-models-pytorch. Importing it imports no torch; using a name
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
    from .smp import SmpEncoder, as_smp_encoder, smp_model
    from .u_net import UNet, unet

__all__ = [
    "DetectionBackbone",
    "SegmentationBackbone",
    "SmpEncoder",
    "UNet",
    "as_detection_backbone",
    "as_segmentation_backbone",
    "as_smp_encoder",
    "smp_model",
    "unet",
]

_MODULES = {
    "SmpEncoder": ".smp",
    "UNet": ".u_net",
    "as_smp_encoder": ".smp",
    "smp_model": ".smp",
    "unet": ".u_net",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_MODULES.get(name, ".backbones"), __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
