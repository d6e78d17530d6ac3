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
from .recipe import Patches, Recipe, Weights
from .registry import Named, PluginInfo, Registry
from .specs import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    Spec,
    WeightsSpec,
)
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .describe import PathInfo, describe_backbone
    from .model.auditing import AuditReport, FreezeReport, NormalizationReport, PartReport, audit
    from .model.finetuning import param_groups
    from .model.hybrid import HybridModel, PatchRecord
    from .model.pyramid import LevelInfo
    from .opening import load
    from .surgery.anatomy import StageInfo
    from .surgery.head import NoClassifier
    from .surgery.operations import BlockMaker, Target
    from .surgery.patches import Patch
    from .weights.files import read_state_dict
    from .weights.partial import LoadReport, partial_load, transfer_weights
    from .weights.torchvision import build_torchvision

__all__ = [
    # building models
    "HybridBuilder", "Patches", "Recipe", "Weights", "load", "load_yaml_recipe",
    # models, and what they say about themselves
    "HybridModel", "LevelInfo", "PatchRecord", "PathInfo", "StageInfo", "describe_backbone",
    # training and weights
    "AuditReport", "FreezeReport", "LoadReport", "NormalizationReport", "PartReport", "audit",
    "param_groups", "partial_load", "transfer_weights",
    # errors
    "AmbiguousNameError", "BackboneError", "FreezeError", "HeadError", "ParameterError",
    "PatchError", "PluginError", "RecipeError", "RegistryWarning", "StageError", "TargetError",
    "TvcError", "UnknownNameError", "WeightsError",
    # for plugin authors: what plugins offer
    "API_VERSION", "BackboneFamilySpec", "BackboneSpec", "BlockSpec", "InitializerSpec",
    "LocalPlugin", "PatchOpSpec", "Spec", "WeightsSpec", "hookimpl",
    # for plugin authors: what there is, and what their factories use
    "BlockMaker", "Named", "NoClassifier", "Patch", "PluginInfo", "Registry", "Target",
    "build_torchvision", "read_state_dict",
]  # fmt: skip

_HEAVY = {
    name: module
    for module, names in {
        "describe": "PathInfo describe_backbone",
        "model.auditing": "AuditReport FreezeReport NormalizationReport PartReport audit",
        "model.finetuning": "param_groups",
        "model.hybrid": "HybridModel PatchRecord",
        "model.pyramid": "LevelInfo",
        "opening": "load",
        "surgery.anatomy": "StageInfo",
        "surgery.head": "NoClassifier",
        "surgery.operations": "BlockMaker Target",
        "surgery.patches": "Patch",
        "weights.files": "read_state_dict",
        "weights.partial": "LoadReport partial_load transfer_weights",
        "weights.torchvision": "build_torchvision",
    }.items()
    for name in names.split()
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
