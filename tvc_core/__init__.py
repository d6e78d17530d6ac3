"""tvc: change pretrained vision backbones by name, and start exactly where they were.

Importing this package, listing what is installed and reading recipes imports no torch; building
does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors, specs
from .builder import HybridBuilder, load_yaml_recipe
from .errors import *  # noqa: F403  its __all__ is what is public
from .hookspecs import API_VERSION, hookimpl, hookspec
from .local import LocalPlugin
from .recipe import Patches, Recipe, Weights
from .registry import Named, PluginInfo, Registry
from .specs import *  # noqa: F403
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .describe import describe_backbone
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
    from .surgery.path_info import PathInfo
    from .surgery.positions import POSITIONS, Position
    from .training import AuditReport, audit, freeze_head, param_groups
    from .weights.files import read_state_dict
    from .weights.partial import LoadReport, partial_load, transfer_weights
    from .weights.torchvision import build_torchvision

__all__ = [
    # building models
    "HybridBuilder", "Patches", "Recipe", "Weights", "load", "load_yaml_recipe",
    # models, and what they say about themselves
    "FeatureExtractor", "HybridModel", "LevelInfo", "PatchEffect", "PatchRecord", "PatchReport",
    "PathInfo", "StageInfo", "describe_backbone",
    # training and weights
    "AuditReport", "FreezeReport", "LoadReport", "NormalizationReport", "PartReport", "audit",
    "freeze_head", "param_groups", "partial_load", "transfer_weights",
    # errors
    *errors.__all__,
    # for plugin authors: what plugins offer
    *specs.__all__, "API_VERSION", "LocalPlugin", "hookimpl", "hookspec",
    # for plugin authors: what there is, and what their factories use
    "BlockMaker", "Named", "NoClassifier", "POSITIONS", "Patch", "PluginInfo", "Position",
    "Registry", "Target", "build_torchvision", "read_state_dict",
]  # fmt: skip

_HEAVY = {
    name: module
    for module, names in {
        "describe": "describe_backbone",
        "model.freeze_report": "FreezeReport NormalizationReport PartReport",
        "model.hybrid": "HybridModel",
        "model.patch_report": "PatchEffect PatchReport",
        "model.pyramid": "LevelInfo",
        "model.reading": "FeatureExtractor",
        "model.state": "PatchRecord",
        "opening": "load",
        "surgery.anatomy": "StageInfo",
        "surgery.head": "NoClassifier",
        "surgery.operations": "BlockMaker Target",
        "surgery.patch": "Patch",
        "surgery.path_info": "PathInfo",
        "surgery.positions": "POSITIONS Position",
        "training": "AuditReport audit freeze_head param_groups",
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
