"""What looking at a network has shown, remembered for the next build of the same one.

Which image a backbone accepts, the maps of stem and stages, the way from the last one to the logits
and whether its patches can learn depend on what was built, not on its weights: on specs, options
and parameters, on the code of torch, torchvision, tvc and the network's classes, on class, settings
and shapes of every module. All of this is the key, so that a change of any of it means to look
again. What depends on the weights (a patched network gives the same logits) is proved every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from ..recipe import Plan, Recipe
from ..remembered import code_states, is_plain, key_of, recall, remember
from ..specs import FROM_MODULE
from ..surgery import ending, layouts, probing, sites
from ..surgery.anatomy import Anatomy, StageInfo
from ..surgery.prepare import Prepared
from ..version import __version__
from . import bridge, features, measuring, strides
from .bridge import Bridge
from .features import MapReader
from .fingerprint import fingerprint
from .state import Feature

__all__ = [
    "Survey", "backbone_key", "patched_key", "recall_image", "recall_survey", "remember_image",
    "remember_survey",
]  # fmt: skip

_OURS = tuple(
    module.__name__
    for module in (bridge, ending, features, layouts, measuring, probing, sites, strides)
)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was seen of a network with its patches.

    Args:
        features: of the stem and of each stage.
        bridge: the way from the last stage's map to the logits; None where none is known.
        repeated: a module that ends the stem or a stage runs more than once in a pass.
    """

    features: tuple[Feature, ...]
    bridge: Bridge | None
    repeated: bool


def backbone_key(plan: Plan, network: nn.Module, made: str = "") -> str:
    """Return all that a look at an unpatched backbone depends on; empty for one that cannot be
    known again.

    Args:
        plan: what is built.
        network: the backbone, as its factory left it.
        made: what stands for all that the network is, its code and weights included.
    """
    # The key must never be equal for two networks of which a look would show different things, so
    # whatever a repr cannot tell apart makes no key. A factory that is an object and not a string
    # may have the code of yesterday's cell of a notebook; so may a network of from_module; an
    # option that is an object may be any. No key means that the build looks, as it would without
    # this module.
    spec, recipe = plan.backbone.spec, plan.recipe
    if not isinstance(spec.factory, str) or plan.backbone.owner == FROM_MODULE:
        return ""
    if recipe.in_channels is not None or not is_plain(plan.options):
        return ""
    code = _code(() if made else network.modules(), [spec.factory.partition(":")[0], *_OURS])
    versions = (__version__, torch.__version__, torchvision.__version__)
    options = (plan.options, plan.weights, recipe.image_size, recipe.stages, _head(recipe))
    built = made or (type(network).__qualname__, fingerprint(network))
    return "" if code is None else key_of(versions, code, plan.backbone, options, built)


def patched_key(key: str, plan: Plan, prepared: Iterable[Prepared]) -> str:
    """Return all that a look at a patched network depends on; empty as for its backbone, of which
    `key` is the key.
    """
    if not key or not plan.patches:
        return key
    offers = [
        offer
        for patch in plan.patches
        for offer in (patch.op, patch.block, patch.init)
        if offer is not None
    ]
    given = [(patch.entry.params, patch.entry.options) for patch in plan.patches]
    factories = [offer.spec.factory for offer in offers]
    if not all(isinstance(factory, str) for factory in factories) or not is_plain(given):
        return ""
    new: list[nn.Module] = [i.patch for each in prepared for i in each.insertions]
    new += [each.replacement for each in prepared if each.replacement is not None]
    homes = [str(factory).partition(":")[0] for factory in factories]
    code = _code([module for each in new for module in each.modules()], homes)
    built = [(repr(module), fingerprint(module)) for module in new]
    return "" if code is None else key_of(key, plan.patches, code, built)


def recall_image(key: str) -> tuple[int, int] | None:
    """Return height and width of an image that the backbone accepted [pixels]."""
    if not key:
        return None
    with suppress(TypeError, ValueError):
        height, width = recall("images", key)
        return int(height), int(width)
    return None


def remember_image(key: str, size: tuple[int, int]) -> None:
    """Keep the size of an image that the backbone accepted."""
    if key and recall_image(key) != size:
        remember("images", key, size)


def recall_survey(key: str, anatomy: Anatomy) -> Survey | None:
    """Return what an earlier build of the same network has shown; None where there was none."""
    if not key:
        return None
    # An entry on disk may be cut off, or may come from a version that wrote other fields. It is
    # converted field by field, and whatever fails on the way counts as nothing known.
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        return _from_data(recall("surveys", key), anatomy)
    return None


def remember_survey(key: str, survey: Survey) -> None:
    """Keep what a build has shown for the next one."""
    if key:
        remember("surveys", key, _as_data(survey))


def _head(recipe: Recipe) -> tuple[Any, ...]:
    """Return what of the head can change the way to the logits."""
    return (recipe.num_classes == 0, recipe.hidden, recipe.activation, recipe.heads is not None)


def _code(modules: Iterable[nn.Module], homes: Iterable[str]) -> list[list[Any]] | None:
    """Return the states of the code of modules and of Python's modules `homes`."""
    return code_states([*(type(module).__module__ for module in modules), *homes])


def _as_data(survey: Survey) -> dict[str, Any]:
    rows = []
    for feature in survey.features:
        info, reader = feature.info, feature.reader
        seen = (info.channels, info.stride, info.layout)
        rows.append([*seen, reader.layout, reader.prefix, reader.stride])
    return {
        "features": rows,
        "bridge": survey.bridge.as_data() if survey.bridge else None,
        "repeated": survey.repeated,
    }


def _from_data(data: dict[str, Any], anatomy: Anatomy) -> Survey:
    parts = (anatomy.stem, *anatomy.stages)
    found = []
    for index, (paths, row) in enumerate(zip(parts, data["features"], strict=True)):
        channels, stride, layout, read, prefix, side = row
        info = StageInfo(
            stage=index - 1,
            module=paths[-1],
            paths=paths,
            channels=int(channels),
            stride=int(stride),
            layout=str(layout),
        )
        found.append(Feature(info=info, reader=MapReader(read, int(prefix), int(side))))
    steps = data["bridge"]
    return Survey(
        features=tuple(found),
        bridge=None if steps is None else Bridge.of_data(steps),
        repeated=bool(data["repeated"]),
    )
