"""tvc: change pretrained vision backbones by name, and start exactly where they were.

Importing this package, listing what is installed and reading recipes imports no torch; building
does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .builder import HybridBuilder, load_yaml_recipe
from .errors import (
    AmbiguousNameError,
    BackboneError,
    FreezeError,
    HeadError,
    ParameterError,
    PatchError,
    PluginError,
    RecipeError,
    RegistryWarning,
    StageError,
    TargetError,
    TvcError,
    UnknownNameError,
    WeightsError,
)
from .hookspecs import API_VERSION, hookimpl
from .local import LocalPlugin
from .recipe import Recipe
from .registry import PluginInfo, Registry
from .specs import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    WeightsSpec,
)
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .describe import PathInfo, describe_backbone
    from .model.freeze_report import FreezeReport, NormalizationReport, PartReport
    from .model.hybrid import HybridModel
    from .model.patch_report import PatchEffect, PatchReport
    from .model.pyramid import LevelInfo
    from .model.reading import FeatureExtractor
    from .model.state import PatchRecord
    from .opening import load
    from .surgery.anatomy import StageInfo
    from .surgery.head import NoClassifier
    from .surgery.operations import BlockMaker, Target
    from .surgery.patch import Patch
    from .training import AuditReport, audit, freeze_head, param_groups
    from .weights.files import read_state_dict
    from .weights.partial import LoadReport, partial_load, transfer_weights
    from .weights.torchvision import build_torchvision

__all__ = [
    "API_VERSION",
    "AmbiguousNameError",
    "AuditReport",
    "BackboneError",
    "BackboneFamilySpec",
    "BackboneSpec",
    "BlockMaker",
    "BlockSpec",
    "FeatureExtractor",
    "FreezeError",
    "FreezeReport",
    "HeadError",
    "HybridBuilder",
    "HybridModel",
    "InitializerSpec",
    "LevelInfo",
    "LoadReport",
    "LocalPlugin",
    "NoClassifier",
    "NormalizationReport",
    "ParameterError",
    "Patch",
    "PatchEffect",
    "PatchError",
    "PatchOpSpec",
    "PatchRecord",
    "PatchReport",
    "PartReport",
    "PathInfo",
    "PluginError",
    "PluginInfo",
    "Recipe",
    "RecipeError",
    "Registry",
    "RegistryWarning",
    "StageError",
    "StageInfo",
    "Target",
    "TargetError",
    "TvcError",
    "UnknownNameError",
    "WeightsError",
    "WeightsSpec",
    "audit",
    "build_torchvision",
    "describe_backbone",
    "freeze_head",
    "hookimpl",
    "load",
    "load_yaml_recipe",
    "param_groups",
    "partial_load",
    "read_state_dict",
    "transfer_weights",
]

_HEAVY = {
    "AuditReport": "training",
    "BlockMaker": "surgery.operations",
    "FreezeReport": "model.freeze_report",
    "HybridModel": "model.hybrid",
    "LevelInfo": "model.pyramid",
    "LoadReport": "weights.partial",
    "NoClassifier": "surgery.head",
    "NormalizationReport": "model.freeze_report",
    "Patch": "surgery.patch",
    "PartReport": "model.freeze_report",
    "PatchRecord": "model.state",
    "PathInfo": "describe",
    "StageInfo": "surgery.anatomy",
    "Target": "surgery.operations",
    "audit": "training",
    "build_torchvision": "weights.torchvision",
    "load": "opening",
    "PatchReport": "model.patch_report",
    "PatchEffect": "model.patch_report",
    "FeatureExtractor": "model.reading",
    "freeze_head": "training",
    "describe_backbone": "describe",
    "param_groups": "training",
    "partial_load": "weights.partial",
    "read_state_dict": "weights.files",
    "transfer_weights": "weights.partial",
}
"""What needs torch, and the module that has it: imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HEAVY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HEAVY})
