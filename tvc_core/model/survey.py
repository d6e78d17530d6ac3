"""What looking at an unpatched backbone has shown, remembered for the next build of the same one.

Which image a network accepts, the maps of stem and stages and the way from the last one to the
logits depend on what was built, not on its weights: on the spec and the options, on the code of
torch, torchvision, tvc and the network's classes, on class, settings and shapes of every module.
All of this is the key, so that a change of any of it means to look again.
"""

from __future__ import annotations

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
from ..surgery.anatomy import Anatomy, StageInfo
from ..version import __version__
from . import bridge, features, measuring, strides
from .bridge import Bridge
from .features import MapReader
from .fingerprint import fingerprint
from .state import Feature

__all__ = ["Survey", "recall_survey", "remember_survey"]

_OURS = tuple(module.__name__ for module in (bridge, features, measuring, strides))
_BEGAN = time.time_ns()


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was seen of an unpatched backbone.

    Args:
        image: height and width of an image that it accepts [pixels].
        features: of the stem and of each stage.
        bridge: the way from the last stage's map to the logits; None where none is known.
        repeated: a module that ends the stem or a stage runs more than once in a pass.
    """

    image: tuple[int, int]
    features: tuple[Feature, ...]
    bridge: Bridge | None
    repeated: bool


def survey_key(plan: Plan, network: nn.Module) -> str:
    """Return all that a survey depends on; empty for a network that cannot be known again.

    Args:
        plan: what is built.
        network: the backbone, as its factory and `stages` left it.
    """
    spec, recipe = plan.backbone.spec, plan.recipe
    if not isinstance(spec.factory, str) or plan.backbone.owner == FROM_MODULE:
        return ""  # what a user hands over has no name by which it could be known again
    if recipe.in_channels is not None:
        return ""
    names = {type(module).__module__ for module in network.modules()}
    code = _code({*names, spec.factory.partition(":")[0], *_OURS})
    if code is None:
        return ""
    versions = (__version__, torch.__version__, torchvision.__version__)
    options = (plan.options, plan.weights, recipe.image_size, _head(recipe))
    built = (type(network).__qualname__, fingerprint(network))
    key = repr((versions, code, plan.backbone, options, built))
    # the address of an object: another one can have it later
    return "" if " at 0x" in key else key


def recall_survey(key: str, anatomy: Anatomy) -> Survey | None:
    """Return what an earlier build of the same backbone has shown; None where there was none."""
    if not key:
        return None
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


def _code(modules: Iterable[str]) -> list[tuple[str, str, int, int, int]] | None:
    """Return files of modules and their states; None where these do not say what code runs: there
    is no file, or it has changed since it can have been imported.
    """
    found = []
    for name in sorted(modules):
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
        "image": list(survey.image),
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
    height, width = data["image"]
    steps = data["bridge"]
    return Survey(
        image=(int(height), int(width)),
        features=tuple(found),
        bridge=None if steps is None else Bridge.of_data(steps),
        repeated=bool(data["repeated"]),
    )
