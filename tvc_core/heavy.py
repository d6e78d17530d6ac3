"""What of the public names needs torch: the face imports this file when the first of them is asked
for.
"""

from __future__ import annotations

from .backbone import describe_backbone
from .inspecting import FileInfo, describe_file
from .model.describing import describe_model
from .model.folding import FoldReport, fold_patches
from .model.freeze_report import FreezeReport, NormalizationReport, PartReport
from .model.gate_statistics import GateStatistics
from .model.heads import HeadInfo
from .model.hybrid import HybridModel
from .model.patch_report import PatchEffect, PatchReport
from .model.plain import plain_state_dict
from .model.pyramid import LevelInfo
from .model.reading import FeatureExtractor
from .model.state import PatchRecord
from .model.unpatching import drop_closed_patches
from .model.writing import check_target, write_file
from .opening import check_header, load
from .surgery.anatomy import StageInfo
from .surgery.head import HeadReport, NoClassifier
from .surgery.hooks import is_watched
from .surgery.initializers import is_normalization
from .surgery.marks import check_hybrid
from .surgery.operations import BlockMaker, Target
from .surgery.patch import Patch
from .surgery.path_info import PathInfo
from .surgery.positions import POSITIONS, Position
from .surgery.probing import ThreadMode, own_randomness
from .training import AuditReport, audit, freeze_head, param_groups
from .weights.difference import TensorChange, WeightsDiff, diff_weights
from .weights.digest import digest_of_tensors
from .weights.files import read_state_dict
from .weights.located import weights_file
from .weights.partial import LoadReport, partial_load, transfer_weights
from .weights.preparing import Preprocessing, as_rgb
from .weights.torchvision import build_torchvision

__all__ = [
    "AuditReport", "BlockMaker", "FeatureExtractor", "FileInfo", "FoldReport", "FreezeReport",
    "GateStatistics", "HeadInfo", "HeadReport", "HybridModel", "LevelInfo", "LoadReport",
    "NoClassifier", "NormalizationReport", "POSITIONS", "PartReport", "Patch", "PatchEffect",
    "PatchRecord", "PatchReport", "PathInfo", "Position", "Preprocessing", "StageInfo", "Target",
    "TensorChange", "ThreadMode", "WeightsDiff", "as_rgb", "audit", "build_torchvision",
    "check_header", "check_hybrid", "check_target", "describe_backbone", "describe_file",
    "describe_model", "diff_weights", "digest_of_tensors", "drop_closed_patches", "fold_patches",
    "freeze_head", "is_normalization", "is_watched", "load", "own_randomness", "param_groups",
    "partial_load", "plain_state_dict", "read_state_dict", "transfer_weights", "weights_file",
    "write_file",
]  # fmt: skip
