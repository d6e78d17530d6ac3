"""Run a hybrid's forward: the backbone's own, with what it needs to know around it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import join_names
from ..surgery import calls
from ..surgery.patches import installed_patches
from .settling import settle
from .state import state_of

__all__ = ["run_compiled", "run_forward"]


def run_forward(
    network: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a forward pass of a hybrid, in which its patches know that they are in their model.

    Args:
        network: the hybrid.
        forward: the backbone's own forward, bound.
        args: its arguments.
        kwargs: its keyword arguments.

    Raises:
        PatchError: a patch has no place any more.
    """
    settle(network, state_of(network))
    # Three stacks of this thread say what a hook cannot know by itself. `running`: whether the
    # patch runs inside of its model. `images`: how large the image was, from which the grid of a
    # list of tokens follows. `collections`: into which call's list a tap puts its map. The first
    # forward inside of a collecting call claims it; one that a hook starts inside of that gets None
    # and leaves the outer call's maps alone.
    stack, collections, images = calls.running(), calls.collections(), calls.images()
    length, others, sizes = len(stack), len(collections), len(images)
    try:
        try:
            stack.append(network)
            images.append(calls.image_of((*args, *kwargs.values())))
            if collections and collections[-1] is not None:
                if collections[-1].claimed:  # a call inside of a call, by a hook: nothing is its
                    collections.append(None)
                else:
                    collections[-1].claimed = True
            if any(isinstance(each, torch.fx.Proxy) for each in (*args, *kwargs.values())):
                with _traced_through(network):
                    return forward(*args, **kwargs)
            return forward(*args, **kwargs)
        finally:
            del stack[length:], collections[others:], images[sizes:]
    finally:  # an interrupt may come on the line above
        del stack[length:], collections[others:], images[sizes:]


def run_compiled(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a forward pass while a graph is made of it: nothing is put in place, and the image is
    known all the same.
    """
    images = calls.images()
    images.append(calls.image_of((*args, *kwargs.values())))
    # no `finally`: Dynamo could not go on after a graph break inside
    found = forward(*args, **kwargs)
    images.pop()
    return found


@contextmanager
def _traced_through(network: nn.Module) -> Iterator[None]:
    """Let torch.fx trace into patched layers, whose hooks it would not see.

    It takes every module of torch.nn for one step, known by the module that its class is from; an
    attribute of the instance hides that while the trace lasts. What it cannot trace into stays one
    step with its hooks, and a warning says what that means.
    """
    patched = dict.fromkeys(network.get_submodule(path) for path, _ in installed_patches(network))
    steps = [module for module in patched if type(module).__module__.startswith("torch.nn")]
    marks: list[tuple[nn.Module, dict[str, Any]]] = []
    opaque: list[str] = []
    for module in steps:
        if isinstance(module, _TRACEABLE) and not (_is_norm(module) and module.training):
            checked = {"_check_input_dim": _unchecked} if _is_norm(module) else {}
            marks.append((module, {"__module__": __name__, **checked}))
        elif not isinstance(module, nn.Sequential):
            opaque.append(type(module).__name__)
    if opaque:
        warnings.warn(
            f"torch.fx takes patched layers ({join_names(dict.fromkeys(opaque), most=3)}) for one "
            "step: their patches run as hooks of these layers, and are lost where a tool removes "
            "or exchanges the layers in the graph (fusing, quantization). Trace in eval mode, or "
            "patch the modules around these layers",
            UserWarning,
            stacklevel=4,
        )
    try:
        for module, attributes in marks:
            module.__dict__.update(attributes)
        yield
    finally:
        for module, attributes in marks:
            for name in attributes:
                module.__dict__.pop(name, None)


_TRACEABLE = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def _unchecked(x: Any) -> None:
    """Stand for a check of dimensions, which a traced value cannot answer."""
