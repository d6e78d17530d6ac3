"""The recipe of a model as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..recipe import Recipe
from ..surgery.anatomy import HEAD, stage_name
from ..surgery.head import dropout_of, find_heads, find_last_layer, num_classes_of
from .state import HybridState

__all__ = ["checkpointing_of", "current_recipe", "head_of", "written_head"]


def head_of(network: nn.Module, state: HybridState) -> dict[str, Any]:
    """Return the head's keys of a recipe, as the head is now."""
    written = state.plan.recipe.to_mapping().get("head", {})
    names = {name: list(each) for name, each in state.class_names.items()}
    return {**written_head(network, state.anatomy.head, written), "class_names": names}


def current_recipe(network: nn.Module, state: HybridState) -> Recipe:
    """Return the recipe that builds a model as it is now."""
    recipe, head = state.plan.recipe, head_of(network, state)
    changed = {key: head[key] for key in head if head[key] != state.head_as_built.get(key)}
    if "num_classes" in changed or "class_names" in changed:
        changed |= {"num_classes": head.get("num_classes"), "class_names": head["class_names"]}
    if (names := changed.pop("class_names", None)) is not None:
        changed["class_names"] = names.get("")
        heads = changed.setdefault("heads", head["heads"]) if recipe.heads else {}
        for name in heads.keys() & names:
            heads[name]["class_names"] = names[name]
    return replace(recipe, **changed, grad_checkpointing=checkpointing_of(state))


def checkpointing_of(state: HybridState) -> bool | tuple[int, ...]:
    """Return which stages are checkpointed now, as a recipe says it."""
    every = {part for part in state.anatomy.parts if part != HEAD}
    stages = range(len(state.anatomy.stages))
    some = tuple(index for index in stages if stage_name(index) in state.checkpointed)
    return state.checkpointed >= every or some or False


def written_head(network: nn.Module, path: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a recipe describes the head as it is now; class names stand beside the recipe."""
    head = {key: value for key, value in written.items() if key != "class_names"}
    dropout = dropout_of(network, path)
    if dropout is not None and 0 <= dropout < 1:
        head["dropout"] = dropout
    if several := find_heads(network, path):
        head["heads"] = {
            name: written_head(network, each, head["heads"][name]) for name, each in several.items()
        }
    else:
        last = find_last_layer(network, path)
        head["num_classes"] = num_classes_of(last[1]) if last else 0
    return head
