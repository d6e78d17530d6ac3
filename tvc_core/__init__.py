"""tvc: change pretrained vision backbones by name, and start exactly where they were.

Importing this package, listing what is installed and reading recipes imports no torch; building
does.
"""

# ruff: noqa: F403, F405  errors, specs and heavy say in __all__ what of them is public

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import errors, specs
from .advice.words import on_value
from .builder import HybridBuilder, load_yaml_recipe
from .errors import *
from .errors import did_you_mean, foreign, join_names, short_repr, what_there_is
from .hookspecs import API_VERSION, hookimpl, hookspec
from .local import LocalPlugin
from .recipe import Patches, Recipe, RecipeDocument, Weights, load_recipe
from .registry import Named, PluginInfo, Registry
from .specs import *
from .version import __version__ as __version__
from .written.pairs import read_changes

# Whoever has loaded torch is about to build, and the first build should not wait for imports.
if TYPE_CHECKING or "torch" in sys.modules:
    from .heavy import *

__all__ = [
    # building models
    "HybridBuilder", "Patches", "Recipe", "RecipeDocument", "Weights", "load", "load_recipe",
    "load_yaml_recipe", "read_changes",
    # models, and what they say about themselves
    "FeatureExtractor", "GateStatistics", "HeadInfo", "HeadReport", "HybridModel", "LevelInfo",
    "PatchEffect", "PatchRecord", "PatchReport", "PathInfo", "Preprocessing", "StageInfo",
    "as_rgb", "describe_backbone", "describe_model", "drop_closed_patches",
    # training and weights
    "AuditReport", "FileInfo", "FoldReport", "FreezeReport", "LoadReport", "NormalizationReport",
    "PartReport", "TensorChange", "WeightsDiff", "audit", "check_header", "describe_file",
    "diff_weights", "digest_of_tensors", "fold_patches", "freeze_head", "param_groups",
    "partial_load", "plain_state_dict", "transfer_weights", "weights_file",
    # errors
    *errors.__all__,
    # for plugin authors: the words that errors share
    "did_you_mean", "foreign", "join_names", "on_value", "short_repr", "what_there_is",
    # for plugin authors: what plugins offer
    *specs.__all__, "API_VERSION", "LocalPlugin", "hookimpl", "hookspec",
    # for plugin authors: what there is, and what their factories use
    "BlockMaker", "Named", "NoClassifier", "POSITIONS", "Patch", "PluginInfo", "Position",
    "Registry", "Target", "ThreadMode", "build_torchvision", "is_normalization", "own_randomness",
    "read_state_dict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    heavy = importlib.import_module(".heavy", __name__)  # imports torch
    globals().update((each, getattr(heavy, each)) for each in heavy.__all__)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
