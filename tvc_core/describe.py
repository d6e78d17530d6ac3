"""List every module of a backbone with what flows there: where patches can go, and why not
elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .backbone import build_backbone
from .errors import BackboneError, ParameterError, TargetError
from .recipe import Plan, Recipe, make_plan
from .registry import Registry
from .specs import BackboneSpec
from .surgery.anatomy import Anatomy
from .surgery.layouts import Shape
from .surgery.sites import Probe, Site
from .surgery.targets import expand

__all__ = ["PathInfo", "describe_backbone"]

USUAL_SIZE = 224
"""Side of the image for a backbone without pretrained weights, which would say theirs [pixels]."""


@dataclass(frozen=True, kw_only=True)
class PathInfo:
    """One module of a backbone as a patch target.

    Args:
        path: dotted path from the network's root, the target of a patch.
        type: class of the module.
        part: "stem", "stage 0", ..., "head"; None for a module that holds several parts.
        in_channels: channels of the map that goes in; None where that is no single map [channels].
        out_channels: channels of the map that comes out; None where that is no single map
            [channels].
        height: of the map that comes out; None where it has none, or where the calls differ
            [pixels].
        width: of the map that comes out, as `height` [pixels].
        layout: of the map that comes out: NCHW, NHWC, NLC or NC.
        calls: how often the module runs in one forward pass.
        image: height and width of the image that was sent through [pixels].
        problem: why nothing can be inserted after the module, in a few words; None where a patch
            can go.
    """

    path: str
    type: str
    part: str | None
    in_channels: int | None
    out_channels: int | None
    height: int | None
    width: int | None
    layout: str | None
    calls: int
    image: tuple[int, int]
    problem: str | None


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
                network = build_backbone(plan, pretrained=False)
            return _describe(network, plan, size, target)
        except TargetError:
            raise
        except Exception:
            # not every network can be built or run without memory; those that cannot raise anything
            return _describe(build_backbone(plan, pretrained=False), plan, size, target)


def _describe(
    network: nn.Module, plan: Plan, size: int | None, target: str | None
) -> tuple[PathInfo, ...]:
    spec = plan.backbone.spec
    anatomy = Anatomy.of(network, spec)
    every = [path for path, _ in network.named_modules() if path]
    paths = every if target is None else expand(network, target, anatomy, spec.name)
    probe = _probe(network, spec, size)
    sites, _ = probe.sites(network, paths)
    return tuple(_path_info(site, anatomy.part_of(path)) for path, site in sites.items())


def _probe(network: nn.Module, spec: BackboneSpec, size: int | None) -> Probe:
    if size is not None:
        return Probe.of(network, spec, size)
    default = spec.find_weights(spec.default_weights) if spec.default_weights else None
    try:
        return Probe.of(network, spec, default.crop_size if default else USUAL_SIZE)
    except BackboneError:
        return Probe.of(network, spec)


def _path_info(site: Site, part: str | None) -> PathInfo:
    layout = _layout(site, "output")
    height, width = _size({call.output for call in site.calls}, layout)
    return PathInfo(
        path=site.path,
        type=site.type_name,
        part=part,
        in_channels=site.channels("input") if _layout(site, "input") else None,
        out_channels=site.channels("output") if layout else None,
        height=height,
        width=width,
        layout=layout,
        calls=len(site.calls),
        image=site.image,
        problem=None if layout else _problem(site),
    )


def _layout(site: Site, side: str) -> str | None:
    try:
        return site.layout(side)
    except TargetError:
        return None


def _size(shapes: set[Shape | None], layout: str | None) -> tuple[int, int] | tuple[None, None]:
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    if shape is None or layout not in ("NCHW", "NHWC"):
        return (None, None)
    return (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])


def _problem(site: Site) -> str:
    """Say in a few words what the error of `Site.layout` says in a sentence."""
    if not site.calls:
        return "never called"
    kinds = [call.output_kind for call in site.calls if call.output is None]
    if kinds:
        return f"returns a {kinds[0]}, not a tensor"
    maps = list(
        dict.fromkeys(
            "x".join(str(size) for size in (call.output or ())[1:]) for call in site.calls
        )
    )
    if len(maps) > 1:
        return f"runs {len(site.calls)} times with different outputs: {', '.join(maps)}"
    return f"returns a tensor of unknown layout: {maps[0] or 'one number a batch'}"
