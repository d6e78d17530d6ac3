"""What a file says of a model beside its tensors; the rules for it stand in weights/content.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata as installed
from typing import Any

import torch
import torchvision
from torch import nn

from ..from_module import described
from ..recipe import Plan, Recipe
from ..registry import Named
from ..specs import FROM_MODULE
from ..version import __version__
from ..weights.content import FORMAT, MODULE_KEY, PREPARED
from ..weights.preprocessing import sized
from . import freezing
from .current import checkpointing_of, written_head
from .state import HybridState

__all__ = ["content_of"]


def content_of(
    network: nn.Module, state: HybridState, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what a file says of a model, without the hash."""
    plan, anatomy = state.plan, state.anatomy
    recipe = replace(plan.recipe, grad_checkpointing=checkpointing_of(state)).to_mapping()
    recipe["head"] = written_head(network, anatomy.head, recipe.get("head", {}))
    # in the order in which a loaded model would write it again
    recipe = Recipe.from_mapping(recipe).to_mapping()
    names = {name: list(each) for name, each in state.class_names.items()}
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": recipe,
        "freeze": freezing.as_data(state),
        "by_hand": freezing.by_hand(network, state),
        "class_names": names if state.head_widths else names.get(""),
        "step0_difference": repr(state.step0_difference),
        "verified": state.verified,
        "license": (plan.weights.license if plan.weights else "") or None,
        "versions": _versions(plan),
        "preprocessing": _preprocessing(state),
        "metadata": {**state.metadata, **(metadata or {})},
    }
    if plan.backbone.owner == FROM_MODULE:
        content[MODULE_KEY] = described(plan.backbone.spec, network)
    return content


def _versions(plan: Plan) -> dict[str, str]:
    """Return versions of tvc, torch, and each plugin whose pieces the model has."""
    found = {
        "tvc-core": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    offers: list[Named[Any]] = [plan.backbone]
    offers += [
        each for patch in plan.patches for each in (patch.op, patch.block, patch.init) if each
    ]
    for owner in sorted({offer.owner for offer in offers} - found.keys()):
        try:
            found[owner] = installed.version(owner)
        except installed.PackageNotFoundError:
            continue  # of this process: a LocalPlugin, a module of the user's
    return found


def _preprocessing(state: HybridState) -> dict[str, Any] | None:
    """Return how images are prepared: as was set, or for the weights, or for those that would be
    the default.
    """
    if state.preprocessing is not None:
        return state.preprocessing.to_mapping()
    plan, spec = state.plan, state.plan.backbone.spec
    weights = plan.weights or spec.find_weights(spec.default_weights or "")
    if weights is None:
        return None
    weights, _ = sized(plan, weights)
    found = {name: getattr(weights, name) for name in PREPARED}
    return {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}
