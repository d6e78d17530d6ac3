"""What looking at a network has shown, remembered for the next build of the same one.

Which image a backbone accepts, the maps of stem and stages, the way from the last one to the logits
and whether its patches can learn depend on what was built, not on its weights: on specs, options
and parameters, on the code of torch, torchvision, tvc and the network's classes, on class, settings
and shapes of every module. All of this is the key, so that a change of any of it means to look
again. What depends on the weights (a patched network gives the same logits) is proved every time.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from ..recipe import Plan, Recipe
from ..remembered import recall, remember
from ..specs import FROM_MODULE
from ..surgery import layouts, probing, sites
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
    module.__name__ for module in (bridge, features, layouts, measuring, probing, sites, strides)
)
_BEGAN = time.time_ns()


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


def backbone_key(plan: Plan, network: nn.Module) -> str:
    """Return all that a look at an unpatched backbone depends on; empty for one that cannot be
    known again.

    Args:
        plan: what is built.
        network: the backbone, as its factory and `stages` left it.
    """
    # The key must never be equal for two networks of which a look would show different things, so
    # whatever a repr cannot tell apart makes no key. A factory that is an object and not a string
    # may have the code of yesterday's cell of a notebook; so may a network of from_module; an
    # option that is an object may be any. No key means that the build looks, as it would without
    # this module.
    spec, recipe = plan.backbone.spec, plan.recipe
    if not isinstance(spec.factory, str) or plan.backbone.owner == FROM_MODULE:
        return ""
    if recipe.in_channels is not None or not _is_plain(plan.options):
        return ""
    code = _code(network.modules(), [spec.factory.partition(":")[0], *_OURS])
    versions = (__version__, torch.__version__, torchvision.__version__)
    options = (plan.options, plan.weights, recipe.image_size, _head(recipe))
    return "" if code is None else _key(versions, code, plan.backbone, options, _built(network))


def patched_key(key: str, plan: Plan, network: nn.Module, prepared: Iterable[Prepared]) -> str:
    """Return all that a look at a patched network depends on; empty as for its backbone."""
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
    if not all(isinstance(factory, str) for factory in factories) or not _is_plain(given):
        return ""
    modules = [module for each in prepared for i in each.insertions for module in i.patch.modules()]
    homes = [str(factory).partition(":")[0] for factory in factories]
    code = _code([*network.modules(), *modules], homes)
    if code is None:
        return ""
    return _key(key, plan.patches, code, _built(network), [repr(module) for module in modules])


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


def _key(*parts: Any) -> str:
    key = repr(parts)
    if " at 0x" in key:  # an object's address, which another one can have later
        return ""
    return hashlib.sha256(key.encode()).hexdigest()  # once here, not in each use of so long a text


def _is_plain(value: Any) -> bool:
    """Return whether a value is data, whose repr says it all; that of an object may be another's
    later.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _built(network: nn.Module) -> tuple[str, dict[str, str]]:
    return (type(network).__qualname__, fingerprint(network))


def _head(recipe: Recipe) -> tuple[Any, ...]:
    """Return what of the head can change the way to the logits."""
    return (recipe.num_classes == 0, recipe.hidden, recipe.activation, recipe.heads is not None)


def _code(
    modules: Iterable[nn.Module], homes: Iterable[str]
) -> list[tuple[str, str, int, int, int]] | None:
    """Return the files of the classes of modules and of Python's modules `homes`, and their states;
    None where these do not say what code runs: there is no file, or it has changed since it can
    have been imported.
    """
    # Size and times of change stand for a file's content: to read and hash the sources of all
    # classes would cost about as much as the look that is to be saved, and a file that was touched
    # without a change only costs that look once. A file that has changed since this process began
    # may no longer be the code that was imported, so it makes no key.
    found = []
    for name in sorted({*(type(module).__module__ for module in modules), *homes}):
        file = getattr(sys.modules.get(name), "__file__", None)
        try:
            stat = Path(file or "/nowhere").stat()
        except OSError:
            return None
        if max(stat.st_mtime_ns, stat.st_ctime_ns) > _BEGAN:
            return None
        found.append((name, str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return found


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
