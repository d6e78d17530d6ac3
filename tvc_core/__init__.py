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
    from .model.auditing import AuditReport, FreezeReport, NormalizationReport, PartReport, audit
    from .model.finetuning import param_groups
    from .model.freezing import freeze_head
    from .model.hybrid import HybridModel, PatchRecord
    from .model.pyramid import LevelInfo
    from .surgery.anatomy import PartInfo, StageInfo
    from .surgery.head import NoClassifier
    from .surgery.operations import BlockMaker, Target
    from .surgery.patches import Patch
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
    "PatchError",
    "PatchOpSpec",
    "PatchRecord",
    "PartInfo",
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
    "load_yaml_recipe",
    "param_groups",
    "partial_load",
    "read_state_dict",
    "transfer_weights",
]

_HEAVY = {
    "AuditReport": "model.auditing",
    "BlockMaker": "surgery.operations",
    "FreezeReport": "model.auditing",
    "HybridModel": "model.hybrid",
    "LevelInfo": "model.pyramid",
    "LoadReport": "weights.partial",
    "NoClassifier": "surgery.head",
    "NormalizationReport": "model.auditing",
    "Patch": "surgery.patches",
    "PartInfo": "surgery.anatomy",
    "PartReport": "model.auditing",
    "PatchRecord": "model.hybrid",
    "PathInfo": "describe",
    "StageInfo": "surgery.anatomy",
    "Target": "surgery.operations",
    "audit": "model.auditing",
    "build_torchvision": "weights.torchvision",
    "describe_backbone": "describe",
    "freeze_head": "model.freezing",
    "param_groups": "model.finetuning",
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
