"""A backbone by itself: built by its factory, unpatched, with its weights in; and described,
every module with what flows there: where patches can go, and why not elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .errors import BackboneError, ParameterError, TargetError, foreign
from .own_weights import fill_from_file
from .recipe import Plan, Recipe, make_plan
from .registry import Registry
from .specs import WeightsSpec
from .surgery.anatomy import Anatomy
from .surgery.marks import is_hybrid
from .surgery.path_info import PathInfo, path_info
from .surgery.sites import Probe
from .surgery.targets import expand
from .weights.deferred import DeferredInit

__all__ = ["build_backbone", "describe_backbone"]

USUAL_SIZE = 224
"""Side of the image for a backbone without pretrained weights, which would say theirs [pixels]."""


def build_backbone(
    plan: Plan, *, pretrained: bool = True, fill: Callable[[nn.Module], None] | None = None
) -> tuple[nn.Module, Plan]:
    """Return the backbone of a plan, unpatched, with its weights in; and the plan with these
    weights, where the factory says as the network's attribute `tvc_weights` that they are others
    than it was asked for: those of a file that an option names.

    Args:
        plan: a recipe with every name bound.
        pretrained: load the plan's weights; false leaves them random.
        fill: where they stay random, gives the new network what is known of its tensors, or refuses
            it; what it fills is not initialized before.

    Raises:
        BackboneError: the factory fails, or does not return a new module.
        WeightsError: the weights cannot be downloaded or read, or do not fit.
    """
    spec, name = plan.backbone.spec, plan.backbone.qualified
    factory: Callable[..., Any] = plan.backbone.load()
    given = ", ".join(f"{option}={value!r}" for option, value in plan.options.items())
    what = f"the backbone {name!r} cannot be built{f' with {given}' if given else ''}"
    filling: DeferredInit | None = None
    with foreign(BackboneError, what):
        if pretrained and plan.own_weights is not None:
            with DeferredInit() as filling:
                network = factory(spec, weights=None, **plan.options)
                if isinstance(network, nn.Module) and not is_hybrid(network):
                    own = fill_from_file(network, plan, *plan.own_weights)
                    network.tvc_weights = own  # type: ignore[assignment]
        elif pretrained and plan.weights is not None:
            with DeferredInit() as filling:
                network = factory(spec, weights=plan.weights, **plan.options)
        else:
            options = {**(plan.weights.options if plan.weights else {}), **plan.options}
            with DeferredInit() if fill else nullcontext() as filling:
                network = factory(spec, weights=None, **options)
                if fill and isinstance(network, nn.Module) and not is_hybrid(network):
                    fill(network)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise BackboneError(f"the factory of {name!r} returned {kind}, not an nn.Module")
    if is_hybrid(network):
        raise BackboneError(f"the factory of {name!r} returned a hybrid, not a new network")
    if filling is not None:
        filling.finish()
    found = network.__dict__.pop("tvc_weights", None)
    if found is None:
        return network, plan
    if not isinstance(found, WeightsSpec):
        kind = type(found).__name__
        raise BackboneError(f"tvc_weights of {name!r} is a WeightsSpec, not a {kind}")
    return network, replace(plan, weights=found)


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
