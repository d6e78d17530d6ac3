"""Build the backbone of a plan by its factory: unpatched, with its weights in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from .errors import BackboneError, foreign
from .own_weights import fill_from_file
from .recipe import Plan
from .specs import WeightsSpec
from .surgery.marks import is_hybrid
from .weights.deferred import DeferredInit
from .weights.torchvision import check_weights_class

__all__ = ["build_backbone"]


def build_backbone(
    plan: Plan, *, pretrained: bool = True, fill: Callable[[nn.Module], None] | None = None
) -> tuple[nn.Module, Plan]:
    """Return the backbone of a plan, unpatched, with its weights in; and the plan with these
    weights, where the factory says as the network's attribute `tvc_weights` that they are others
    than it was asked for: those of a file that an option names.

    Args:
        plan: a recipe with every name bound.
        pretrained: load the plan's weights; false leaves them random.
        fill: where they stay random, gives the new network what is known of its tensors; what it
            fills is not initialized before.

    Raises:
        BackboneError: the factory fails, or does not return a new module.
        WeightsError: the weights cannot be downloaded or read, or do not fit.
    """
    spec, name = plan.backbone.spec, plan.backbone.qualified
    if plan.weights_class is not None:
        check_weights_class(spec, plan.weights_class)
    factory: Callable[..., Any] = plan.backbone.load()
    given = ", ".join(f"{option}={value!r}" for option, value in plan.options.items())
    what = f"the backbone {name!r} cannot be built{f' with {given}' if given else ''}"
    filling: DeferredInit | None = None
    with foreign(BackboneError, what):
        if pretrained and plan.weights_file is not None:
            with DeferredInit() as filling:
                network = factory(spec, weights=None, **plan.options)
                if isinstance(network, nn.Module) and not is_hybrid(network):
                    own = fill_from_file(network, plan, plan.weights_file)
                    network.tvc_weights = own  # type: ignore[assignment]
        elif pretrained and plan.weights is not None:
            with DeferredInit() as filling:
                network = factory(spec, weights=plan.weights, **plan.options)
        else:
            options = {**(plan.weights.options if plan.weights else {}), **plan.options}
            with DeferredInit() if fill else nullcontext() as filling:
                network = factory(spec, weights=None, **options)
                if fill and isinstance(network, nn.Module):
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
