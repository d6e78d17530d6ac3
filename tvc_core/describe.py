"""List every module of a backbone with what flows there: where patches can go, and why not
elsewhere.
"""

from __future__ import annotations

import torch
from torch import nn

from .backbone import build_backbone
from .errors import ParameterError, TargetError
from .recipe import Plan, Recipe, make_plan
from .registry import Registry
from .surgery.anatomy import Anatomy
from .surgery.path_info import PathInfo, path_info
from .surgery.sites import Probe
from .surgery.targets import expand

__all__ = ["describe_backbone"]

USUAL_SIZE = 224
"""Side of the image for a backbone without pretrained weights, which would say theirs [pixels]."""


def describe_backbone(
    name: str,
    *,
    size: int | None = None,
    target: str | None = None,
    registry: Registry | None = None,
) -> tuple[PathInfo, ...]:
    """Return every module of a backbone with what was measured there, in the order of
    `named_modules`.

    The network is built with random weights, without memory for them where it lets itself, and runs
    once.

    Args:
        name: short or qualified name.
        size: side of the square image that is sent through; by default the crop of the default
            weights [pixels].
        target: return only the modules that this path or pattern means, as a patch would.
        registry: where the name is looked up; by default what is installed.

    Raises:
        UnknownNameError: no such backbone is installed.
        ParameterError: `size` is no positive whole number.
        BackboneError: the network cannot be built, does not look as its spec says, or does not
            accept the image.
        TargetError: nothing is at `target`.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ParameterError(f"size is a whole number of pixels, at least 1, not {size!r}")
    plan = make_plan(Recipe(backbone=name, weights=None), registry or Registry())
    with torch.random.fork_rng(devices=[]):
        try:
            # drawing the weights of a large network takes longer than all the rest
            with torch.device("meta"):
                network, _ = build_backbone(plan, pretrained=False)
            return _describe(network, plan, size, target)
        except TargetError:
            raise
        except Exception:
            # not every network can be built or run without memory; those that cannot raise anything
            return _describe(build_backbone(plan, pretrained=False)[0], plan, size, target)


def _describe(
    network: nn.Module, plan: Plan, size: int | None, target: str | None
) -> tuple[PathInfo, ...]:
    spec = plan.backbone.spec
    anatomy = Anatomy.of(network, spec)
    every = [path for path, _ in network.named_modules() if path]
    paths = every if target is None else expand(network, target, anatomy, spec.name)
    default = spec.find_weights(spec.default_weights)
    probe = Probe.of(network, spec, size, first=default.crop_size if default else USUAL_SIZE)
    sites, _ = probe.sites(network, paths)
    return tuple(path_info(site, anatomy.part_of(path)) for path, site in sites.items())
