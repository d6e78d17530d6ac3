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
    # models: building, training, weights, and what they say about themselves
    "AuditReport", "FeatureExtractor", "FileInfo", "FoldReport", "FreezeReport", "GateStatistics",
    "HeadInfo", "HeadReport", "HybridBuilder", "HybridModel", "LevelInfo", "LoadReport",
    "NormalizationReport", "PartReport", "PatchEffect", "PatchRecord", "PatchReport", "Patches",
    "PathInfo", "Preprocessing", "Recipe", "RecipeDocument", "StageInfo", "TensorChange", "Weights",
    "WeightsDiff", "as_rgb", "audit", "check_header", "describe_backbone", "describe_file",
    "describe_model", "diff_weights", "digest_of_tensors", "drop_closed_patches", "fold_patches",
    "freeze_head", "load", "load_recipe", "load_yaml_recipe", "param_groups", "partial_load",
    "plain_state_dict", "read_changes", "transfer_weights", "weights_file",
    # errors
    *errors.__all__,
    # for plugin authors: what plugins offer, what there is, what their factories use, and the words
    # that errors share
    *specs.__all__, "API_VERSION", "BlockMaker", "LocalPlugin", "Named", "NoClassifier", "Patch",
    "POSITIONS", "PluginInfo", "Position", "Registry", "Target", "ThreadMode", "build_torchvision",
    "check_hybrid", "check_target", "did_you_mean", "foreign", "hookimpl", "hookspec",
    "is_normalization", "is_watched", "join_names", "on_value", "own_randomness", "read_state_dict",
    "short_repr", "what_there_is", "write_file",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # writing a text needs no torch, which `heavy` imports
    home = ".model.writing" if name in ("check_target", "write_file") else ".heavy"
    found = importlib.import_module(home, __name__)
    globals().update((each, getattr(found, each)) for each in found.__all__)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
